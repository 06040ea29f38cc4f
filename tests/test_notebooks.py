"""The notebooks run from the first cell to the last. The saved files contain their pictures, and are small."""

import os
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_all_of_them_are_there():
    names = [
        "01_quickstart",
        "02_classification",
        "03_regression",
        "04_theory",
        "05_replication",
    ]
    assert [path.stem for path in NOTEBOOKS] == names


def pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum(
        bool({"image/png", "image/jpeg"} & {*output.get("data", {})})
        for output in outputs
    )


@pytest.fixture(scope="module")
def kernel():
    """One process for all notebooks: loading TensorFlow takes longer than most of their cells."""
    kernel = KernelManager(kernel_name="python3")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    kernel.start_kernel(
        cwd=str(ROOT / "notebooks"), env={**os.environ, "PYTHONPATH": path}
    )
    yield kernel
    kernel.shutdown_kernel(now=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_was_committed_with_its_pictures(path, kernel):
    saved = nbformat.read(path, as_version=4)
    assert path.stat().st_size < 1_000_000
    assert [cell["execution_count"] for cell in saved.cells if cell.cell_type == "code"]
    ran = nbformat.from_dict(saved)
    ran.cells.insert(
        0, nbformat.v4.new_code_cell("%reset -f")
    )  # Remove the variables of the other notebooks.
    NotebookClient(ran, km=kernel, timeout=300).execute()
    assert pictures(ran) == pictures(saved) > 0
