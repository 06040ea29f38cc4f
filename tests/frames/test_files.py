"""Files are complete or absent, even after a power cut. The tests check what is flushed, and in which order."""

import os
from pathlib import Path

import pytest

from srel_tf import FrameStore, StorageError
from srel_tf.files import make_directory, remove_leftovers, replacing, write_json
from tests.made_up import probe, result


@pytest.fixture
def acts(tmp_path, monkeypatch):
    """List of (what, path) for each flush, rename and new directory, in the order of the system calls."""
    done, (fsync, replace, mkdir) = [], (os.fsync, os.replace, os.mkdir)

    def note(what, path):
        done.append((what, Path(path)))

    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (note("flush", os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1],
    )
    monkeypatch.setattr(
        os, "replace", lambda a, b: (note("rename", b), replace(a, b))[1]
    )
    monkeypatch.setattr(
        os, "mkdir", lambda path, *m: (mkdir(path, *m), note("make", path))[0]
    )
    return done


def test_a_new_file_is_flushed_before_its_name_and_its_name_after(acts, tmp_path):
    with replacing(tmp_path / "x") as part:
        part.write_text("new", encoding="utf-8")
    assert acts == [("flush", part), ("rename", tmp_path / "x"), ("flush", tmp_path)]


def test_the_names_of_new_directories_are_flushed(acts, tmp_path):
    place = tmp_path / "a" / "b" / "c"
    make_directory(place)
    assert place.is_dir()
    assert {path for what, path in acts if what == "flush"} == {
        tmp_path,
        tmp_path / "a",
        tmp_path / "a" / "b",
    }
    acts.clear()
    make_directory(place)
    assert acts == []


def test_a_directory_that_is_named_from_here_is_flushed(acts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_directory("a")
    assert ("flush", tmp_path) in acts


def test_nothing_that_a_store_makes_waits_for_the_disk(acts, tmp_path):
    """After each rename and each new directory, the parent directory is flushed."""
    with FrameStore(tmp_path / "run" / "frame", write=True) as store:
        for step in (0, 3):
            store.commit(
                result(probe(), step=step).to_frame(run="", seed=0, epoch=0.0),
                {"w": [1.0]},
            )
    named = [
        (number, path.parent)
        for number, (what, path) in enumerate(acts)
        if what in ("make", "rename")
    ]
    # Two directories, one index, and rows and state of each commit.
    assert len(named) == 2 + 1 + 2 * 2
    for number, directory in named:
        assert ("flush", directory) in acts[number:]


def test_only_our_own_leftovers_are_removed(tmp_path):
    for name in (
        ".important.download.part",
        ".7.part",
        ".x.7.part",
        "x.7.srel_tf.part",
        ".srel_tf.part",
    ):
        (tmp_path / name).write_text("mine", encoding="utf-8")
    before = set(tmp_path.iterdir())

    def die():
        with replacing(tmp_path / "x") as part:
            part.write_text("half", encoding="utf-8")
            part.rename(
                tmp_path / "elsewhere"
            )  # A process that dies does not remove this file.
            raise SystemExit

    with pytest.raises(SystemExit):
        die()
    (tmp_path / "elsewhere").rename(tmp_path / f".x.{os.getpid()}.srel_tf.part")
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == before


def test_a_name_that_cannot_be_flushed_is_told(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("srel_tf.files.sync_directory", fail)
    with pytest.raises(
        StorageError, match=r"cannot write .*x\.json: Input/output error"
    ):
        write_json(tmp_path / "x.json", {})
