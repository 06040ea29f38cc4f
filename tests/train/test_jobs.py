"""Tests of seeds in separate processes: when the process that started them ends, they save and end."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from train.common import cli
from train.common.parallel import run_in_processes

SCRIPT = (
    "import sys; from tests.train.test_jobs import start; sys.exit(start(sys.argv[1:]))"
)
ROOT = Path(__file__).parents[2]


def work(directory, seed, orphaned):
    """Make steps that no signal interrupts. After each step, ask orphaned()."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    directory.joinpath(f"{seed} begun").touch()
    while not orphaned():
        time.sleep(0.01)
    directory.joinpath(f"{seed} saved").touch()
    raise KeyboardInterrupt


@cli.command("goes on")
def start(arguments):
    run_in_processes(partial(work, Path(*arguments)), [0, 1, 2], jobs=2)


def wait_for(directory, names):
    until = time.monotonic() + 240
    while {p.name for p in directory.iterdir()} != names:
        assert time.monotonic() < until, "the processes hang"
        time.sleep(0.01)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_all_are_asked_to_save_when_the_first_is_stopped(tmp_path, number):
    """SIGINT is ignored, as in the background of a shell. If the first process is killed, the others notice it."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ) as first:
        wait_for(tmp_path, {"0 begun", "1 begun"})
        os.kill(first.pid, number)
        wait_for(tmp_path, {"0 begun", "1 begun", "0 saved", "1 saved"})
        errors = first.stderr.read()
    assert first.returncode == (130 if number == signal.SIGTERM else -number)
    assert ("2 seeds finish their current step and then save" in errors) == (
        number == signal.SIGTERM
    )
    assert "Traceback" not in errors


def test_an_interrupt_while_libraries_are_loaded_leaves_no_traceback(tmp_path):
    (tmp_path / "keras.py").write_text("raise KeyboardInterrupt", encoding="utf-8")
    for module, status, errors in (
        ("train.classification", 130, "interrupted\n"),
        ("train.nothing", 1, None),
    ):
        ended = subprocess.run(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == status
        assert errors is None or ended.stderr == errors
