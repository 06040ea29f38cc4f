"""Mutated inputs for everything that reads a file. A reader must return a result or raise a `SRelError`.

    python -m tests.frames.fuzz --count 10000          in a separate process, because a crash would end it

Prints, for each reader, the number of inputs, of results and of named errors, and every failure with its number.
"""

import argparse
import collections
import contextlib
import faulthandler
import io
import os
import resource
import signal
import sqlite3
import sys
import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np

import srel_tf
from srel_tf.files import fingerprint
from srel_tf.frames.index import INDEX, Entry
from tests.made_up import probe, result
from train.classification.command import read_selection
from train.common.data import load
from train.common.run_directory import RunDirectory, write_json

SECONDS, GIGABYTES = 20, 8  # Limits of time and memory for one input.
TOKENS = (
    *(
        b"null",
        b"NaN",
        b"-1",
        b"1e999",
        b"true",
        b"[]",
        b"{}",
        b'""',
        b"../../etc/passwd",
        b"/dev/zero",
        b"folder:/",
    ),
    *(
        b"\x00",
        b"\xff\xff\xff\xff",
        b"999999999999999999999",
        b"[" * 5000,
        b"\n",
        b",",
        b'"',
        b"PAR1",
    ),
)


def mutated(content, rng):
    """Return `content` with one to three random changes.

    In half of the cases single bits change. Otherwise bits, bytes or tokens change, or bytes are removed or repeated.
    """
    content = bytearray(content)
    if rng.random() < 0.5:  # Change bits only, so that no byte moves.
        for at in rng.integers(0, len(content), rng.integers(1, 4)):
            content[at] ^= 1 << int(rng.integers(0, 8))
        return bytes(content)
    for _ in range(rng.integers(1, 4)):
        at, length = int(rng.integers(0, len(content) + 1)), int(rng.integers(1, 12))
        match rng.integers(0, 6):
            case 0 if at < len(content):
                content[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                content[at : at + length] = rng.bytes(length)
            case 2:
                content[at : at + int(rng.integers(0, 8))] = TOKENS[
                    rng.integers(0, len(TOKENS))
                ]
            case 3:
                del content[at : at + length]
            case 4 if rng.random() < 0.3:
                del content[at:]
            case _:
                content[at:at] = content[max(0, at - length) : at]
    return bytes(content)


def rows():
    return result(probe(2, 2), step=3).to_frame(run="a", seed=1, epoch=0.5)


def frames(directory, suffix):
    file = srel_tf.write_frame(rows(), directory / f"frame{suffix}")
    return [file], lambda changed: srel_tf.read_frame(file)


def scanned(directory):
    file = srel_tf.write_frame(rows(), directory / "frame.parquet")
    return [file], lambda changed: srel_tf.smooth(srel_tf.scan_frame(file))


def run_directories(directory):
    settings = {
        "dataset": "digits",
        "classes": ["3", "5"],
        "epochs": 2,
        "learning_rate": 0.1,
        "augment": None,
    }
    made = RunDirectory(directory / "run", settings)
    made.check_data("abc")
    made.save_seed(0, rows(), rows()[["run", "seed", "srel"]], about={"seed": 0})
    write_json(
        made.path / "selection.json",
        {"seed": 0, "classes": ["a"], "test_accuracy": {"a": 0.5, "b": 0.25}},
    )

    def read(changed):
        opened = RunDirectory(made.path, settings)
        opened.check_data("abc")
        opened.frames([0])
        read_selection(made.path / "selection.json")

    files = [*made.path.glob("*.json"), *made.path.glob("seed-0/*")]
    return [f for f in files if f.is_file()], read


def net():
    inputs = keras.Input((3,))
    model = srel_tf.SRelModel(inputs, keras.layers.Dense(2)(inputs))
    model.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.attach_probe(srel_tf.ProbeSet(np.ones((2, 3), "float32"), [0, 1]), every=1)
    return model


class Notes:
    state = ["a"]  # noqa: RUF012


def checkpoints(directory, sealed):
    """Return the files of a checkpoint and their reader. With `sealed`, changed files get correct checksums."""
    with srel_tf.FrameStore(directory / "frame", write=True) as store:
        x = np.ones((4, 3), "float32")
        saving = srel_tf.Checkpoint(store, 1, [Notes()])
        net().fit(x, np.array([0, 1, 0, 1]), batch_size=2, verbose=0, callbacks=saving)
        store.commit(rows().iloc[:0])
    model = net()

    def read(changed):
        if sealed:
            seal(store.path / INDEX, changed)
        opened = srel_tf.FrameStore(store.path)
        opened.num_rows  # noqa: B018
        epoch, _ = srel_tf.Checkpoint(opened, 1, [Notes()]).restore(model)
        srel_tf.smooth(opened.scan())
        model.fit(
            x[:2], np.array([0, 1]), initial_epoch=epoch, epochs=epoch + 1, verbose=0
        )  # Train one step.
        assert (model.srel_frame()["step"] >= 0).all()
        model._srel_callbacks[0].recorder.withdraw(0)

    return [
        file for file in store.path.iterdir() if file.is_file() and file.name != ".lock"
    ], read


def seal(file, changed):
    """Correct the checksums in an index: the checksum of the changed file, and the seal of each entry."""
    with (
        contextlib.closing(sqlite3.connect(file)) as database,
        contextlib.suppress(sqlite3.Error, TypeError, ValueError, KeyError),
    ):
        for *row, _ in database.execute("SELECT * FROM files").fetchall():
            entry = Entry(*row)
            if entry.file == changed.name:
                size, sha256 = fingerprint(changed)
                entry = entry._replace(bytes=size, sha256=sha256)
            database.execute(
                "REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*entry, entry.seal),
            )
        database.commit()


def image_folders(directory):
    rng, files = np.random.default_rng(0), []
    for split in ("train", "test"):
        for name, kind in (("cat", "png"), ("dog", "jpg")):
            place = directory / "images" / split / name
            place.mkdir(parents=True)
            files.append(place / f"0.{kind}")
            keras.utils.save_img(
                files[-1], rng.integers(0, 256, (6, 6, 3)), scale=False
            )
    return files, lambda changed: load(f"folder:{directory / 'images'}")


READERS = {  # {reader: (function that makes its files, share of the inputs)}
    "Parquet frame": (lambda d: frames(d, ".parquet"), 0.22),
    "Parquet frame, piece by piece": (scanned, 0.1),
    "CSV frame": (lambda d: frames(d, ".csv"), 0.2),
    "settings and other files of a run": (run_directories, 0.2),
    "checkpoint": (lambda d: checkpoints(d, sealed=False), 0.1),
    "checkpoint, checksums forged": (lambda d: checkpoints(d, sealed=True), 0.13),
    "image folder": (image_folders, 0.05),
}


class Hang(BaseException):
    """Reading an input took too long."""


def hang(*_):
    raise Hang(f"more than {SECONDS} s")


def fuzz(name, count, seed):
    """Give `count` mutated inputs to a reader. Return its counts of outcomes and its failures."""
    outcomes, failures = collections.Counter(), []
    signal.signal(signal.SIGALRM, hang)
    with tempfile.TemporaryDirectory() as directory:
        files, read = READERS[name][0](Path(directory))
        read(files[0])  # Unchanged files can be read.
        whole = {file: file.read_bytes() for file in files}
        for number in range(count):
            rng = np.random.default_rng([seed, list(READERS).index(name), number])
            changed = files[rng.integers(0, len(files))]
            changed.write_bytes(mutated(whole[changed], rng))
            signal.alarm(SECONDS)
            try:
                read(changed)
                outcomes["a result"] += 1
            except srel_tf.SRelError as error:
                outcomes["a named error"] += 1
                if not str(error):
                    failures.append(
                        (number, changed.name, "an error without a message")
                    )
            except BaseException as error:
                failures.append(
                    (number, changed.name, f"{type(error).__name__}: {error}"[:300])
                )
            finally:
                signal.alarm(0)
                for file, content in whole.items():
                    file.write_bytes(content)
    return outcomes, failures


def main(arguments=None):
    p = argparse.ArgumentParser(prog="python -m tests.frames.fuzz")
    p.add_argument("--count", type=int, default=10_000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--readers", nargs="+", default=list(READERS), choices=list(READERS))
    args = p.parse_args(arguments)
    faulthandler.enable()
    warnings.simplefilter("ignore")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    resource.setrlimit(
        resource.RLIMIT_AS,
        (_virtual_memory() + GIGABYTES * 2**30, resource.RLIM_INFINITY),
    )
    total, failed = 0, 0
    for name in args.readers:
        count = round(args.count * READERS[name][1])
        with contextlib.redirect_stdout(io.StringIO()):
            outcomes, failures = fuzz(name, count, args.seed)
        total, failed = total + count, failed + len(failures)
        counts = ", ".join(f"{n} {what}" for what, n in sorted(outcomes.items()))
        print(f"{name}: {count} inputs: {counts}, {len(failures)} failures", flush=True)
        for number, file, error in failures[:20]:
            print(f"  input {number} ({file}): {error}", flush=True)
    print(f"{total} inputs, {failed} failures")
    return 1 if failed else 0


def _virtual_memory():
    return (
        int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        * resource.getpagesize()
    )


if __name__ == "__main__":
    sys.exit(main())
