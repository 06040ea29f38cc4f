"""Tests of `kill -9` at random moments: the run continues with --resume and ends, bit for bit, as without interruption.

The quick suite kills once at a random moment. `pytest -m slow tests/train/test_resume.py` kills 20 times, at each
act on files of a first save and of the end of a seed, and while classes are selected. It also fills up a disk, and runs
seeds in one process, in several processes, and in several calls.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import srel_tf
from srel_tf import FrameStore
from srel_tf.files import lock
from train.classification.command import main

# 406 training images: 8 updates per epoch. Each update is measured. Saving every 3 updates happens within epochs, too.
RUN = [
    *(
        "--model",
        "mlp",
        "--batch-size",
        "50",
        "--every",
        "1",
        "--per-class",
        "3",
        "--measures",
        "l1",
    ),
    *(
        "--optimizer",
        "adam",
        "--learning-rate",
        "1e-3",
        "--checkpoint-every",
        "3",
        "--seeds",
        "0",
    ),
]
QUICK = [*RUN, "--update", "optimizer", "--epochs", "2"]
LONG = [*RUN, "--update", "sgd", "optimizer", "--epochs", "30"]


def quietly(run, path, *more):
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        return main([*run, "--out", str(path), *more]), err.getvalue()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    assert quietly(QUICK, path) == (0, "")
    return path


def results(path, seed=0):
    """Read what must not differ: the bytes of the tables, and the hash of weights and optimizer."""
    files = {
        name: (path / f"seed-{seed}" / name).read_bytes()
        for name in ("frame.parquet", "history.csv")
    }
    about = json.loads(
        (path / f"seed-{seed}" / "seed.json").read_text(encoding="utf-8")
    )
    return {
        **files,
        **{name: about[name] for name in ("weights_sha256", "updates", "probe_ids")},
    }


def saved(path):
    """Return the number of the latest state, counted from 1; 0 if there is none."""
    states = (path / "seed-0/frame.parts").glob("state-*.safetensors")
    return max((int(file.stem.split("-")[1]) for file in states), default=0)


def half_written(path):
    """Return whether a file or the index of the store was being written."""
    return any((path / "seed-0").rglob(".*.part")) or any(path.rglob("*-journal"))


def run_and_kill(run, path, rng, kind):
    """Start the run, wait until it has saved one or two more states, and kill it.

    The kill comes at a random moment (kind "any") or while a file is being written ("writing").

    Returns:
        Whether the run was killed (otherwise it ended before), and whether it left a half-written file.
    """
    arguments = [
        sys.executable,
        "-m",
        "train.classification",
        *run,
        "--out",
        str(path),
        "--resume",
    ]
    start, wanted, until = saved(path), int(rng.integers(1, 3)), None
    with subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 240
        while process.poll() is None:
            assert time.monotonic() < deadline, "the run hangs"
            if until is None and saved(path) >= start + wanted:
                until = time.monotonic() + rng.uniform(0, 0.25)
            writing = kind == "writing" and half_written(path)
            if until is not None and (
                writing or (kind == "any" and time.monotonic() >= until)
            ):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.0005)
        status = process.wait()
    assert status in (0, -signal.SIGKILL)
    return status != 0, half_written(path)


def kill_and_compare(run, path, uninterrupted, kills, *finish):
    """Kill the run several times, finish it, and compare its results with those of an uninterrupted run.

    `finish` are more arguments of the last command.

    Returns:
        The number of kills, and the number of kills that left a half-written file.
    """
    rng, killed, torn = np.random.default_rng(kills), 0, 0
    for number in range(kills):
        was_killed, left_half = run_and_kill(
            run, path, rng, ("any", "writing")[number % 2]
        )
        killed, torn = killed + was_killed, torn + left_half
        if not was_killed:
            break
        rows = srel_tf.scan_frame(path / "seed-0" / "frame.parts").read()
        whole = rows.groupby(["step", "update", "measure"]).size()
        # The frame can be read at any moment, and every measurement in it is complete.
        assert (whole == 9 * 9).all()
    assert quietly(run, path, "--resume", *finish) == (0, "")
    assert results(path) == results(uninterrupted)
    assert [
        p.name for p in (path / "seed-0").iterdir() if p.name.startswith("frame")
    ] == ["frame.parquet"]
    return killed, torn


def test_a_kill_and_then_seeds_side_by_side(
    tmp_path, uninterrupted, capfd, monkeypatch
):
    """The kill is real. The seeds of the second command run in this process; test_jobs tests separate processes."""

    def in_this_process(work, seeds, jobs):
        assert jobs == 2
        with contextlib.redirect_stdout(sys.__stdout__):
            for seed in seeds:
                work(seed, orphaned=lambda: False)

    monkeypatch.setattr(
        "train.classification.command.run_in_processes", in_this_process
    )
    finish = ["--seeds", "0", "1", "--jobs", "2"]
    assert kill_and_compare(QUICK, tmp_path, uninterrupted, 1, *finish)[0] == 1
    lines = [
        line.split(",")[0]
        for line in capfd.readouterr().out.splitlines()
        if ": epoch " in line
    ]
    assert lines.count("seed 0: epoch 2 of 2") == 1
    assert [line for line in lines if "seed 1" in line] == [
        f"seed 1: epoch {epoch} of 2" for epoch in (1, 2)
    ]


@pytest.mark.slow
def test_twenty_kills(tmp_path, capsys):
    assert quietly(LONG, tmp_path / "whole") == (0, "")
    killed, torn = kill_and_compare(LONG, tmp_path / "killed", tmp_path / "whole", 20)
    with capsys.disabled():
        print(
            f"\n{killed} kills, {torn} of them with a file half written; frame, history, weights as uninterrupted"
        )
    assert killed >= 20


def die(where, at, path):
    """Run and die at the `at`-th act on files of a first save or of the end of a seed.

    Returns:
        Whether the run died there; otherwise it ended before this act.
    """
    arguments = [
        sys.executable,
        "-m",
        "tests.frames.dying",
        where,
        str(at),
        *QUICK,
        "--out",
        str(path),
        "--resume",
    ]
    status = subprocess.run(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    ).returncode
    assert status in (0, -signal.SIGKILL)
    return status != 0


def ends_as(path, uninterrupted):
    assert quietly(QUICK, path, "--resume") == (0, "")
    assert results(path) == results(uninterrupted)
    assert {p.name for p in (path / "seed-0").iterdir()} == {
        "frame.parquet",
        "history.csv",
        "seed.json",
    }


@pytest.mark.slow
def test_a_kill_before_the_first_save_and_one_at_the_end(tmp_path, uninterrupted):
    assert die(
        "commit", 2, tmp_path
    )  # The rows are flushed, but their file has no name yet.
    assert saved(tmp_path) == 0
    assert die(
        "finish", 5, tmp_path
    )  # The frame has its name, the history has none yet.
    assert not (tmp_path / "seed-0" / "seed.json").exists()
    ends_as(tmp_path, uninterrupted)


@pytest.mark.slow
def test_a_kill_at_each_act(tmp_path, uninterrupted, capsys):
    """Each process dies one act later than the one before: first in the first save, then at the end of the seed."""
    kills = {"commit": 0, "finish": 0}
    for where in kills:
        for at in range(1, 40):
            if not die(where, at, tmp_path / where):
                break
            kills[where] += 1
            shutil.copytree(tmp_path / where, tmp_path / f"{where}-{at}")
            ends_as(tmp_path / f"{where}-{at}", uninterrupted)
        ends_as(tmp_path / where, uninterrupted)
    with capsys.disabled():
        print(
            f"\n{kills['commit']} kills in a save, {kills['finish']} while a seed was finished"
        )
    assert kills["commit"] >= 6
    assert kills["finish"] >= 8


SELECT = [
    *RUN,
    "--update",
    "sgd",
    "--epochs",
    "6",
    "--classes",
    *"0123456",
    "--select-top",
    "2",
]


@pytest.mark.slow
def test_kills_while_classes_are_selected(tmp_path):
    """No saved update is lost, and the choice is the same as in an uninterrupted run."""
    assert quietly(SELECT, tmp_path / "whole") == (0, "")
    path, rng = tmp_path / "killed", np.random.default_rng(0)
    arguments = [
        sys.executable,
        "-m",
        "train.classification",
        *SELECT,
        "--out",
        str(path),
        "--resume",
    ]
    store, kills = path / "selection.parts", 0
    while kills < 3:
        start = (
            FrameStore(store).about["step"] if (store / "index.sqlite").exists() else -1
        )
        with subprocess.Popen(
            arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            while process.poll() is None:
                if (store / "index.sqlite").exists() and (
                    (FrameStore(store).about or {}).get("step", -1)
                ) > start:
                    break
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.1))
            assert not (path / "selection.json").exists(), "it was too late"
            process.kill()
        kills += 1
    assert quietly(SELECT, path, "--resume") == (0, "")
    assert (path / "selection.json").read_bytes() == (
        tmp_path / "whole" / "selection.json"
    ).read_bytes()
    assert results(path) == results(tmp_path / "whole")
    assert not store.exists()


def test_ctrl_c_ends_after_the_step_and_says_how_to_go_on(
    tmp_path, uninterrupted, monkeypatch
):
    """The signal comes while the callbacks of the 12th update run. This update is saved.

    When the command continues, the step of this update is measured before the 13th update.
    """

    def interrupt(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == 12:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(keras.callbacks.TerminateOnNaN, "on_train_batch_end", interrupt)
    before = signal.getsignal(signal.SIGINT)
    status, err = quietly(QUICK, tmp_path)
    monkeypatch.undo()
    assert status == 130
    assert "the same command with --resume continues" in err
    store = FrameStore(tmp_path / "seed-0" / "frame.parts")
    assert sorted(store.read()["step"].unique()) == list(range(12))
    assert store.about["step"] == 12
    seconds = store.about["companions"][1]
    assert signal.getsignal(signal.SIGINT) is before
    begun = time.perf_counter()
    assert quietly(QUICK, tmp_path, "--resume") == (0, "")
    assert results(tmp_path) == results(uninterrupted)
    total = json.loads((tmp_path / "seed-0" / "seed.json").read_text(encoding="utf-8"))[
        "seconds"
    ]
    # The total counts the work of both processes.
    assert seconds < total < seconds + time.perf_counter() - begun


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_seeds_side_by_side_are_stopped_with_the_command(tmp_path, number):
    """All seeds end their step and save: after SIGINT, although it is ignored here, after SIGTERM, and after a kill."""
    command = [
        sys.executable,
        "-m",
        "train.classification",
        *LONG,
        "--seeds",
        "0",
        "1",
        "--jobs",
        "2",
    ]
    stores = [tmp_path / f"seed-{seed}/frame.parts" for seed in (0, 1)]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ) as process:
        deadline = time.monotonic() + 500
        while not all(any(store.glob("state-*")) for store in stores):
            assert time.monotonic() < deadline, "the run hangs"
            time.sleep(0.01)
        process.send_signal(number)
        errors = process.stderr.read()  # This waits for the end of the last process.
    assert process.returncode == (130 if number != signal.SIGKILL else -number)
    assert ("the same command with --resume continues" in errors) == (
        number != signal.SIGKILL
    )
    assert "Traceback" not in errors
    for store in stores:
        # No process holds the store any more.
        with srel_tf.FrameStore(store, write=True) as opened:
            rows = opened.read()
            # The step of the saved state is measured when the training continues.
            assert rows["step"].max() + 1 == opened.about["step"] < 240
            assert (rows.groupby(["step", "update"]).size() == 81).all()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--jobs", "3"], ["--jobs", "2"], []])
def test_seeds_in_any_number_of_processes(tmp_path, uninterrupted, arguments):
    """One call with seeds 0, 1, 2 gives the same results as seed 0 alone and as three calls with one seed each."""
    assert quietly(QUICK, tmp_path / "one", "--seeds", "0", "1", "2", *arguments) == (
        0,
        "",
    )
    assert results(tmp_path / "one") == results(uninterrupted)
    for seed in "012":
        assert quietly(QUICK, tmp_path / "three", "--seeds", seed) == (0, "")
        assert results(tmp_path / "one", seed) == results(tmp_path / "three", seed)


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 690 KiB, if the system allows it. The fixture is a function that sets another size."""

    def mount(*options):
        command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(tmp_path)]
        return (
            shutil.which("mount") is not None
            and not subprocess.run(command, check=False).returncode
        )

    if not mount("-o", "size=690k"):
        pytest.skip("mounting a small tmpfs takes the rights of root")
    yield lambda size: mount("-o", f"remount,size={size}")
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_training_and_loses_nothing(
    tmp_path, small_disk, uninterrupted
):
    status, err = quietly(QUICK, tmp_path)
    assert status == 1
    assert (
        "No space left on device; free space there; earlier saves are complete" in err
    )
    steps = (
        srel_tf.scan_frame(tmp_path / "seed-0" / "frame.parts")
        .read()["step"]
        .unique()
        .tolist()
    )
    assert steps == list(range(len(steps)))
    assert len(steps) > 3
    assert small_disk("4m")
    assert quietly(QUICK, tmp_path, "--resume") == (0, "")
    assert results(tmp_path) == results(uninterrupted)


def test_a_second_process_is_refused(tmp_path):
    """Another process holds the directory. After this process has died, its lock is gone."""
    script = "import filelock, sys; held = filelock.FileLock(sys.argv[1]); held.acquire(); print('held'); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-uc", script, str(tmp_path / ".lock")],
        stdin=pipe,
        stdout=pipe,
        text=True,
    ) as other:
        assert other.stdout.readline() == "held\n"
        status, err = quietly(QUICK, tmp_path)
        other.kill()
    assert status == 1
    assert f"another process is writing to {tmp_path}" in err
    assert lock(tmp_path).is_locked
