"""The notebooks run from their first cell to their last, and lie there with their pictures, small."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_all_of_them_are_there():
    names = ["01_quickstart", "02_classification", "03_regression", "04_theory", "05_replication"]
    assert [path.stem for path in NOTEBOOKS] == names


def pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum(bool({"image/png", "image/jpeg"} & {*output.get("data", {})}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_was_committed_with_its_pictures(path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    saved = nbformat.read(path, as_version=4)
    assert path.stat().st_size < 1_000_000
    assert [cell["execution_count"] for cell in saved.cells if cell.cell_type == "code"]
    ran = nbformat.from_dict(saved)
    NotebookClient(ran, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert pictures(ran) == pictures(saved) > 0
