"""Imports between the rooms of srel_tf go one way only. They are read from the source, without importing it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for folder in ("srel_tf", "train")
    for path in (ROOT / folder).rglob("*.py")
}


def imports_of(source, known=MODULES):
    """Return the full names of all modules that a source imports anywhere, also within functions.

    A name that is imported from a package counts as a submodule if there is a submodule of this name.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in full}
    return found


DIRECT = {
    name: imports_of(path.read_text(encoding="utf-8")) for name, path in MODULES.items()
}


def reach(name, graph=DIRECT):
    """Return all modules that `name` imports, directly or through our own modules."""
    found, waiting = set(), [name]
    while waiting:
        for imported in graph.get(waiting.pop(), ()):
            if imported not in found:
                found.add(imported)
                waiting.append(imported)
    return found


def within(name, packages):
    return any(
        name == package or name.startswith(f"{package}.") for package in packages
    )


def modules(*packages):
    found = [name for name in MODULES if within(name, packages)]
    assert found, f"no module of {packages}: renamed?"
    return found


# The other rooms that each room (subpackage or module) of srel_tf may import.
ROOMS = {
    "errors": (),
    "files": ("errors",),
    "probe": ("errors",),
    "measures": ("errors",),
    "gradients": ("errors",),
    "optimizer_copies": ("errors",),
    "updates": ("errors", "gradients", "optimizer_copies"),
    "numerics": ("errors",),
    "frames": ("errors", "files"),
    "theory": ("errors",),
    "hypotheses": ("errors", "frames"),
    "plotting": ("errors", "frames"),
    "result": ("errors", "frames", "probe"),
    "engines": ("errors", "gradients", "numerics", "updates"),
    "ntk": ("errors", "engines", "gradients"),
    "estimators": (
        "errors",
        "engines",
        "gradients",
        "measures",
        "numerics",
        "probe",
        "result",
        "updates",
    ),
    "settings": ("errors", "measures", "updates"),
    "faults": ("result",),
    "measurement": (
        *(
            "errors",
            "estimators",
            "faults",
            "gradients",
            "measures",
            "probe",
            "result",
            "settings",
            "updates",
        ),
    ),
    "fit": (
        "errors",
        "files",
        "frames",
        "measurement",
        "plotting",
        "probe",
        "result",
        "settings",
        "updates",
    ),
}
# Libraries that no module of a room may import, directly or indirectly.
UNKNOWN = {
    "measures": ("keras", "pandas"),
    "gradients": ("pandas",),
    "numerics": ("keras", "pandas"),
    "engines": ("pandas",),
    "optimizer_copies": ("pandas",),
    "updates": ("pandas",),
    "files": ("tensorflow", "keras", "pandas"),
    "frames": ("tensorflow", "keras"),
    "hypotheses": ("tensorflow", "keras"),
    "plotting": ("tensorflow", "keras"),
}


def room_of(name):
    """Return the room of a module of srel_tf; "" for the package itself."""
    return name.split(".")[1] if "." in name else ""


def test_every_module_has_a_room():
    assert {room_of(name) for name in modules("srel_tf")} == {"", *ROOMS}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room):
    for name in modules(f"srel_tf.{room}"):
        imported = [other for other in DIRECT[name] if within(other, ["srel_tf"])]
        assert {room_of(other) for other in imported} <= {room, *ROOMS[room]}, name


def test_rooms_are_in_an_order():
    """No room may import a room that comes after it."""
    order = list(ROOMS)
    assert all(
        order.index(other) < order.index(room)
        for room in ROOMS
        for other in ROOMS[room]
    )


@pytest.mark.parametrize("room", UNKNOWN)
def test_what_a_room_does_not_know(room):
    wrong = {
        n: [i for i in reach(n) if within(i, UNKNOWN[room])]
        for n in modules(f"srel_tf.{room}")
    }
    assert not {name: imported for name, imported in wrong.items() if imported}


def test_the_library_knows_no_experiments():
    assert not [
        n
        for n in modules("srel_tf")
        if any(within(i, ["train", "tests"]) for i in reach(n))
    ]


def test_the_library_loads_figures_only_when_asked():
    """srel_tf imports plotting and TensorBoard only within functions."""
    for name in modules("srel_tf"):
        if not within(name, ["srel_tf.plotting", "srel_tf.fit.tensorboard"]):
            tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
            for function in [
                n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)
            ]:
                function.body = [ast.Pass()]
            drawn = imports_of(ast.unparse(tree))
            wrong = [
                "matplotlib",
                "seaborn",
                "srel_tf.plotting",
                "srel_tf.fit.tensorboard",
            ]
            assert not [i for i in drawn if within(i, wrong)], name


PUBLIC_MODULES = [
    "srel_tf.errors",
    "srel_tf.files",
    "srel_tf.hypotheses",
    "srel_tf.plotting",
    "srel_tf.plotting.theory",
    "srel_tf.theory",
]


def exported(name):
    """Return the names in a module's __all__, or None if it has none."""
    for node in ast.parse(MODULES[name].read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.Assign)
            and getattr(node.targets[0], "id", None) == "__all__"
        ):
            return set(ast.literal_eval(node.value))
    return None


def private_uses(source):
    """Return the names that a source takes from srel_tf although they are not public."""
    names = exported("srel_tf") | {name.split(".")[1] for name in PUBLIC_MODULES}
    wrong = [
        name
        for name in imports_of(source)
        if within(name, ["srel_tf"]) and name not in ["srel_tf", *PUBLIC_MODULES]
    ]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in [
            "srel_tf",
            *PUBLIC_MODULES,
        ]:
            offered = names if node.module == "srel_tf" else exported(node.module)
            taken = [
                a.name
                for a in node.names
                if f"{node.module}.{a.name}" not in PUBLIC_MODULES
            ]
            wrong += [
                name
                for name in taken
                if name.startswith("_") or (offered is not None and name not in offered)
            ]
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "srel_tf"
        ):
            wrong += [] if node.attr in names else [node.attr]
    return wrong


@pytest.mark.parametrize("folder", ["train", "tests/train"])
def test_experiments_use_public_names_only(folder):
    wrong = {
        path.name: private_uses(path.read_text(encoding="utf-8"))
        for path in (ROOT / folder).rglob("*.py")
    }
    assert not {name: uses for name, uses in wrong.items() if uses}


def test_the_reference_imports_no_engine():
    found = imports_of((ROOT / "tests/reference.py").read_text(encoding="utf-8"))
    assert not [name for name in found if within(name, ["srel_tf"])]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b as c", {"a.b"}),
        ("from srel_tf import frames, measure", {"srel_tf.frames", "srel_tf"}),
        ("def f():\n    from srel_tf.frames import tidy", {"srel_tf.frames"}),
    ],
)
def test_imports_are_read(source, expected):
    assert imports_of(source) == expected


def test_chains_are_followed():
    assert reach(
        "a", {"a": {"b"}, "b": {"c"}, "c": {"a", "pandas"}, "d": {"keras"}}
    ) == {"a", "b", "c", "pandas"}


@pytest.mark.parametrize(
    "source",
    [
        "from srel_tf import engines",
        "from srel_tf.engines.finite_step import FiniteStep",
        "import srel_tf.fit.recorder",
        "import srel_tf\nsrel_tf.frames.tidy",
        "from srel_tf.plotting.style import new_figure",
        "from srel_tf.plotting import new_figure",
        "from srel_tf.errors import _hidden",
    ],
)
def test_private_uses_are_found(source):
    assert private_uses(source)
