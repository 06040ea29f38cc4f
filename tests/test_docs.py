"""README and docs/: code blocks run, README shows what its code prints, and all names and paths in them exist."""

import ast
import re
from pathlib import Path

import pytest

from tests.test_imports import MODULES, ROOMS, exported

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]


def blocks(path, language):
    return re.findall(
        rf"^```{language}\n(.*?)^```$",
        path.read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )


def run_blocks(path):
    """Run all Python blocks of a page, one after the other, in one namespace."""
    namespace = {"__name__": path.stem}
    for number, source in enumerate(blocks(path, "python")):
        exec(compile(source, f"{path.name}, block {number}", "exec"), namespace)


def named(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize(
    "path", [path for path in DOCS if blocks(path, "python")], ids=named
)
def test_code_of_a_page_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(path)


def test_readme_shows_what_its_code_prints(capsys):
    run_blocks(ROOT / "README.md")
    printed, shown = (
        [line.split() for line in text.splitlines()]
        for text in (capsys.readouterr().out, result())
    )
    assert printed[0] == shown[0]
    # The order of sums differs between processors, so that the results of trainings differ.
    numbers = [
        [float(cell) for line in table[1:] for cell in line]
        for table in (printed, shown)
    ]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.05)


def result():
    (text,) = blocks(ROOT / "README.md", "text")
    return text


def test_readme_is_short():
    readme = ROOT / "README.md"
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= 110
    (code,) = blocks(readme, "python")
    assert len([line for line in code.splitlines() if line]) <= 12


PATH = re.compile(
    r"(?<![\w/])(?:\.\./)?((?:srel_tf|train|tests|docs|results|notebooks)/[\w./-]*)"
)
PLACEHOLDER = re.compile(r"\b(NAME|ROOM|DIR)\b")


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_paths_exist(path):
    found = {
        name.rstrip(".") for name in PATH.findall(path.read_text(encoding="utf-8"))
    }
    assert not [
        name
        for name in found
        if not PLACEHOLDER.search(name) and not (ROOT / name).exists()
    ]


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_links_of_the_repository_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8"))
    assert not [
        link
        for link in links
        if "://" not in link and not (path.parent / link).exists()
    ]


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_commands_exist(path):
    names = {
        name.rstrip(".")
        for name in re.findall(
            r"python -m ((?:train|tests)\.[\w.]+)", path.read_text("utf-8")
        )
    }
    places = {
        name: ROOT / name.replace(".", "/")
        for name in names
        if not PLACEHOLDER.search(name)
    }
    assert not [
        name
        for name, place in places.items()
        if not (place.is_dir() or place.with_suffix(".py").exists())
    ]


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_chosen_tests_exist(path):
    """Each word of `pytest FILE -k "A or B"` occurs in the name of a test of that file."""
    for file, chosen in re.findall(
        r'(tests/[\w/]+\.py) -k ("[^"]+"|\w+)', path.read_text(encoding="utf-8")
    ):
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        names = [
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
        ]
        words = [
            word
            for word in re.findall(r"\w+", chosen)
            if word not in ("or", "and", "not")
        ]
        assert not [
            word for word in words if not any(word in name for name in names)
        ], file


def architecture():
    return (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def test_the_tree_is_that_of_the_library():
    text = (
        architecture()
        .split("## The tree")[1]
        .split("\n    srel_tf/\n")[1]
        .split("\n\n")[0]
    )
    room, files = "", set()
    for line in text.splitlines():
        if not line.startswith("        "):  # A room, or a module outside of rooms.
            room = line.split()[0] if line.split()[0].endswith("/") else ""
        files |= {room + name for name in re.findall(r"(?<= )\w+\.py\b", line)}
    modules = {
        str(p.relative_to(ROOT / "srel_tf"))
        for n, p in MODULES.items()
        if n.split(".")[0] == "srel_tf"
    }
    assert files == {name for name in modules if not name.endswith("/__init__.py")}


def test_the_table_of_rooms_is_that_of_the_test():
    rows = re.findall(
        r"^\| `(\w+)` \| (nothing|`.*`) \|$",
        architecture().split("## Which room")[1],
        re.MULTILINE,
    )
    assert {
        room: tuple(re.findall(r"`(\w+)`", others)) for room, others in rows
    } == ROOMS


@pytest.mark.parametrize(
    "module", ["srel_tf", "srel_tf.hypotheses", "srel_tf.plotting", "srel_tf.theory"]
)
def test_public_names_are_on_a_page(module):
    shown = re.findall(
        r"^::: (\S+)$",
        (ROOT / f"docs/api/{module.split('.')[-1]}.md").read_text("utf-8"),
        re.MULTILINE,
    )
    if module not in shown:  # A page of a whole module shows all names in its __all__.
        assert {f"{module}.{name}" for name in exported(module)} <= set(shown)
