"""The package: its requirements, the files that it ships, and its version."""

import ast
import importlib.util
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

import srel_tf

try:
    import tomllib
except (
    ModuleNotFoundError
):  # Python 3.10 has no tomllib, but pytest installs tomli, which is the same.
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]

# Packages whose name differs from the name of their module.
PACKAGE_OF = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
}


def imported_packages(*folders):
    """Return the packages that the sources in these folders import anywhere, also within functions."""
    names = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module)
    modules = (
        {name.split(".")[0] for name in names}
        - sys.stdlib_module_names
        - {"srel_tf", "train", "tests"}
    )
    return {PACKAGE_OF.get(name, name) for name in modules}


def required(lines):
    return {re.match(r"[\w-]+", line).group() for line in lines}


def test_the_library_requires_what_it_imports_and_nothing_else():
    assert required(PROJECT["dependencies"]) == imported_packages("srel_tf")


def test_the_experiments_require_what_they_import():
    extras = PROJECT["optional-dependencies"]
    known = (
        required(PROJECT["dependencies"])
        | required(extras["experiments"])
        | required(extras["torch"])
    )
    assert imported_packages("train") <= known


def test_the_version_is_said_once():
    assert re.fullmatch(r"\d+\.\d+\.\d+", srel_tf.__version__)
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT
    assert metadata.version("srel_tf") == srel_tf.__version__


def test_types_are_shipped():
    assert (ROOT / "srel_tf/py.typed").is_file()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "tool"
    ]["setuptools"]
    assert settings["package-data"] == {"srel_tf": ["py.typed"]}


def test_a_log_directory_without_tensorboard_is_refused_at_once(monkeypatch, tmp_path):
    from srel_tf.fit.tensorboard import TensorBoardWriter

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(srel_tf.OptionError, match="pip install tensorboard"):
        TensorBoardWriter(tmp_path)
