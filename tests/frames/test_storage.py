"""Frames in parts: they stay readable after crashes, damage is reported, and memory is bounded."""

import contextlib
import errno
import io
import itertools
import json
import os
import re
import resource
import shutil
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pytest

import srel_tf
from srel_tf import FrameError, FrameStore, StorageError, scan_frame, separation, smooth
from srel_tf.files import fingerprint, read_json, replacing, write_json
from srel_tf.frames.index import INDEX, NAMES_ANOTHER_FILE, OLD_INDEX, Entry, Index
from tests.frames.dying import Died, dying
from tests.made_up import probe, result


def rows(step, **kwargs):
    return result(probe(3, 2), step=step, invalid=0.3, **kwargs).to_frame(
        run="a", seed=5, epoch=step / 10
    )


STATE = {
    "w": np.arange(6, dtype="float32").reshape(2, 3),
    "seed": np.array([1, 2], "int64"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Path of a store with three parts and a state."""
    with FrameStore(tmp_path_factory.mktemp("saved"), write=True) as made:
        for step in (0, 3, 6):
            made.commit(rows(step), STATE, {"step": step})
    return made.path


@pytest.fixture
def store(saved, tmp_path):
    """A copy of the store `saved`, open for writing."""
    with FrameStore(shutil.copytree(saved, tmp_path / "frame"), write=True) as made:
        yield made


def all_rows(*steps):
    return pd.concat([rows(s) for s in steps], ignore_index=True)


def check_rows(reader, *steps):
    pd.testing.assert_frame_equal(reader.read(), all_rows(*steps), check_exact=True)


def names(store):
    return sorted(p.name for p in store.path.iterdir() if not p.name.startswith("."))


def test_what_is_saved_is_read(store):
    assert names(store) == [
        "index.sqlite",
        *(f"part-00000{i}.parquet" for i in range(3)),
        "state-000003.safetensors",
    ]
    for reader in (store, FrameStore(store.path), scan_frame(store.path)):
        check_rows(reader, 0, 3, 6)
        assert reader.num_rows == 3 * 2 * 36
    arrays, about = FrameStore(store.path).state()
    assert about == {"step": 6}
    for name, array in STATE.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)


def test_it_goes_on_after_being_closed(store):
    store.close()
    with FrameStore(store.path, write=True) as again:
        again.append(rows(9))
        assert again.state()[1] == {"step": 6}
    check_rows(scan_frame(store.path), 0, 3, 6, 9)


def test_an_empty_store(tmp_path):
    with FrameStore(tmp_path / "deep" / "frame", write=True) as store:
        assert store.state() is None
        assert store.about is None
        assert list(store.read().columns) == list(srel_tf.frames.schema.COLUMNS)
        assert len(smooth(store.scan())) == len(separation(store.scan())) == 0
        exported = store.export(tmp_path / "frame.parquet")
    for frame in (srel_tf.read_frame(exported), scan_frame(exported).read()):
        assert len(frame) == 0
        assert list(frame.columns) == list(srel_tf.frames.schema.COLUMNS)


def test_clear_and_delete(store):
    store.clear()
    assert names(store) == [INDEX]
    assert store.num_rows == 0
    store.append(rows(1, measures=["l1"]))
    assert store.num_rows == 36
    store.delete()
    assert not store.path.exists()


def test_files_of_others_stay_and_disturb_nothing(store):
    others = (
        "notes.txt",
        ".DS_Store",
        "part-of-mine.parquet",
        "index-1.json",
        "state-old.safetensors",
    )
    for name in (
        *others,
        ".important.download.part",
        ".7.part",
        "state-000000.safetensors/x",
    ):
        (store.path / name).parent.mkdir(exist_ok=True)
        (store.path / name).write_text("mine", encoding="utf-8")
    (store.path / ".index.sqlite.77.srel_tf.part").write_text("half", encoding="utf-8")
    before = {
        path
        for path in store.path.rglob("*")
        if path.is_file() and path.read_bytes() == b"mine"
    }
    store.close()
    with pytest.warns(
        UserWarning, match=r"state-000000\.safetensors is no longer needed, but stays"
    ):
        again = FrameStore(store.path, write=True)
    again.commit(rows(9), STATE, {"step": 9})
    check_rows(again, 0, 3, 6, 9)
    with (
        pytest.warns(
            UserWarning,
            match=r"state-000000\.safetensors is no longer needed, but stays",
        ),
        pytest.warns(
            UserWarning,
            match=rf"{store.path} is no longer needed, but stays: .*notes\.txt",
        ),
    ):
        again.delete()
    assert {path for path in store.path.rglob("*") if path.is_file()} == before


def test_one_writer_at_a_time_any_number_of_readers(store):
    with pytest.raises(
        StorageError, match=f"another process is writing to {store.path}"
    ):
        FrameStore(store.path, write=True)
    with pytest.raises(StorageError, match="open for reading"):
        FrameStore(store.path).append(rows(9))
    store.close()
    FrameStore(store.path, write=True).close()


def test_rows_of_other_types_are_refused(store):
    named = result(probe(3, 2, ids=list("uvwxyz")), step=9).to_frame(
        run="a", seed=5, epoch=1
    )
    with pytest.raises(FrameError, match=r"source_id: 'int64' saved, .*string' now"):
        store.append(named)
    with pytest.raises(FrameError, match="srel: 'double' saved, None now"):
        store.append(rows(9).drop(columns="srel"))
    check_rows(store, 0, 3, 6)


def test_export_gives_the_same_bytes_however_the_rows_were_saved(store, tmp_path):
    with FrameStore(tmp_path / "other", write=True) as other:
        other.append(all_rows(0, 3))
        other.append(rows(6))
        files = [
            s.export(tmp_path / f"{i}.parquet").read_bytes()
            for i, s in enumerate((store, other))
        ]
    assert files[0] == files[1]
    pd.testing.assert_frame_equal(
        srel_tf.read_frame(tmp_path / "0.parquet"), all_rows(0, 3, 6), check_exact=True
    )


# Damage


def truncate(file):
    file.write_bytes(file.read_bytes()[:-7])


def alter(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def grow(file):
    file.write_bytes(file.read_bytes() + b"x")


def pipe(file):
    file.unlink()
    os.mkfifo(file)


def link(file):
    outside = file.parent.parent / "outside.parquet"
    shutil.move(file, outside)
    file.symlink_to(outside)


DAMAGE = {
    truncate: r"has \d+ of its \d+ bytes",
    alter: "has been altered",
    grow: "has grown",
    pipe: "is not a regular file",
    link: "is a link",
    Path.unlink: "is missing",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_damaged_parts_are_left_out_if_asked(store, damage):
    damage(store.path / "part-000001.parquet")
    damaged = rf"part-000001\.parquet {DAMAGE[damage]}"
    with pytest.raises(StorageError, match=rf"of the 3 parts of .*, 1 .*: {damaged}"):
        store.scan()
    for reader in (store, FrameStore(store.path)):
        with pytest.raises(StorageError, match=damaged):
            reader.check()
        pd.testing.assert_frame_equal(
            reader.read(skip_damaged=True), all_rows(0, 6), check_exact=True
        )
    pd.testing.assert_frame_equal(
        scan_frame(store.path, skip_damaged=True).read(),
        all_rows(0, 6),
        check_exact=True,
    )
    store.check(skip_damaged=True)  # From now on the damaged part is left out.
    store.append(rows(9))
    for reader in (store, FrameStore(store.path)):
        reader.check()
        (left_out,) = reader.left_out
        assert (left_out["file"], left_out["rows"]) == ("part-000001.parquet", 72)
        assert re.fullmatch(DAMAGE[damage], left_out["fault"])
        assert reader.num_rows == 3 * 72
        check_rows(reader, 0, 6, 9)
    damage(store.path / "state-000003.safetensors")
    with pytest.raises(
        StorageError,
        match=rf"state-000003\.safetensors {DAMAGE[damage]}: start again without this state",
    ):
        store.state()


def test_rows_are_not_added_to_a_damaged_first_part(store):
    store.close()
    truncate(store.path / "part-000000.parquet")
    with (
        FrameStore(store.path, write=True) as again,
        pytest.raises(FrameError, match=r"part-000000\.parquet .*damaged"),
    ):
        again.append(rows(9))


def replaced(old, new):
    return lambda content: content.replace(old, new, 1)


def other_format(content):
    """Change the bytes of `PRAGMA user_version`, which holds the format."""
    return content[:60] + struct.pack(">I", 99) + content[64:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-4096], "cannot be read"),
        (lambda content: content[:4000], "cannot be read"),
        (replaced(b'{"step": 6}', b'{"step": 7}'), "state 3 has been altered"),
        (replaced(b"part", b"Part"), "cannot be read"),
        (
            lambda content: b"",
            "has format 0 or other tables, but this version reads format 3",
        ),
        (lambda content: b"{" * 5000, "file is not a database"),
        (
            other_format,
            "has format 99 or other tables, but this version reads format 3",
        ),
    ],
)
def test_a_damaged_index_is_named_and_can_be_given_up(store, change, message):
    index = store.path / INDEX
    changed = change(index.read_bytes())
    assert changed != index.read_bytes()
    index.write_bytes(changed)
    for write in (False, True):
        store.close()
        with pytest.raises(StorageError, match=rf"index\.sqlite .*{message}"):
            FrameStore(store.path, write=write)
    with FrameStore(store.path, write=True, anew=True) as again:
        again.append(rows(9))
    assert names(store) == [INDEX, "part-000000.parquet"]
    check_rows(scan_frame(store.path), 9)


def test_an_index_that_is_a_pipe_or_a_link_is_not_read(store):
    for damage in (link, pipe):
        damage(store.path / INDEX)
        with pytest.raises(
            StorageError, match="is not a regular file, but for example a symbolic link"
        ):
            FrameStore(store.path)


def test_a_frame_of_an_earlier_version_is_named(tmp_path):
    write_json(tmp_path / OLD_INDEX, {"format": 2})
    (tmp_path / "state-000001.npz").write_bytes(b"")
    for opened in (FrameStore, scan_frame, lambda path: FrameStore(path, write=True)):
        with pytest.raises(
            StorageError,
            match=rf"{tmp_path} holds a frame of an earlier version \(index\.json .*: use the version that wrote "
            "it, or give the rows up",
        ):
            opened(tmp_path)
    with FrameStore(tmp_path, write=True, anew=True) as again:
        assert names(again) == [INDEX]


@pytest.mark.parametrize("kept", ["part-000001.parquet", "state-000003.safetensors"])
def test_a_lost_index_forgets_nothing(store, kept):
    store.close()
    for name in set(names(store)) - {kept}:
        (store.path / name).unlink()
    for opened in (FrameStore, scan_frame, lambda path: FrameStore(path, write=True)):
        with pytest.raises(
            StorageError,
            match=rf"{store.path} holds parts of a frame, but no index\.sqlite: restore it",
        ):
            opened(store.path)
        assert names(store) == [kept]
    with FrameStore(store.path, write=True, anew=True) as again:
        assert (names(store), again.num_rows, again.state()) == (
            [INDEX],
            0,
            None,
        )


def test_a_crash_in_the_first_commit_leaves_an_empty_store(tmp_path, monkeypatch):
    def die(*_):
        raise SystemExit

    with FrameStore(tmp_path, write=True) as store:
        monkeypatch.setattr(Index, "save", die)
        with pytest.raises(SystemExit):
            store.commit(rows(0), STATE)
    monkeypatch.undo()
    assert names(store) == [INDEX, "part-000000.parquet", "state-000001.safetensors"]
    with FrameStore(tmp_path, write=True) as again:
        assert (again.num_rows, again.state()) == (0, None)


def test_there_is_nothing_to_read(tmp_path):
    for path in (tmp_path, tmp_path / "lost"):
        with pytest.raises(
            StorageError, match=r"does not hold a frame: index\.sqlite is missing"
        ):
            FrameStore(path)
    assert not (tmp_path / "lost").exists()


def forge(store, statement, *values):
    """Change the index and correct all seals, as a forger could do."""
    with contextlib.closing(sqlite3.connect(store.path / INDEX)) as database:
        database.execute(statement, values)
        for *row, _ in database.execute("SELECT * FROM files").fetchall():
            with contextlib.suppress(TypeError):  # JSON cannot represent bytes.
                database.execute(
                    "UPDATE files SET seal = ? WHERE kind IS ? AND number IS ?",
                    (Entry(*row).seal, *row[:2]),
                )
        database.commit()


FORGED = {
    "UPDATE files SET kind = '../part' WHERE number = 1": "is missing",
    "UPDATE files SET number = 7 WHERE number = 1": "is missing",
    "DELETE FROM files WHERE number = 1": "is missing",
    "UPDATE files SET number = '../1' WHERE number = 1": "altered",
    "UPDATE files SET rows = -1 WHERE number = 1": "altered",
    "UPDATE files SET rows = 1.5 WHERE number = 1": "altered",
    "UPDATE files SET bytes = NULL WHERE number = 1": "altered",
    "UPDATE files SET sha256 = x'00' WHERE number = 1": "altered",
    "UPDATE files SET metadata = '[1]' WHERE kind = 'state'": "altered",
    f"UPDATE files SET metadata = '{'[' * 9999}' WHERE kind = 'state'": "altered",
    "CREATE TABLE more (x)": "other tables",
    "CREATE TRIGGER t AFTER DELETE ON files BEGIN DELETE FROM files; END": "other tables",
}


def test_a_forged_index_is_told(store):
    forge(store, "UPDATE files SET rows = rows")
    assert FrameStore(store.path).num_rows == 3 * 72
    index = (store.path / INDEX).read_bytes()
    for statement, message in FORGED.items():
        forge(store, statement)
        with pytest.raises(StorageError, match=message):
            FrameStore(store.path)
        (store.path / INDEX).write_bytes(index)
    # Entries of any other kind are ignored.
    forge(store, "UPDATE files SET kind = '../x' WHERE kind = 'part'")
    assert len(FrameStore(store.path).read()) == 0


def test_a_journal_cannot_lead_elsewhere(store):
    """SQLite would delete the file that the journal of a transaction over several databases names."""
    outside = store.path.parent / "outside"
    outside.write_text("mine", encoding="utf-8")
    copy = in_mid_commit(store, store.path.parent / "copy")
    journal = copy.path / f"{INDEX}-journal"
    whole = journal.read_bytes()
    name = str(outside).encode()
    end = struct.pack(">II", len(name), sum(name)) + NAMES_ANOTHER_FILE
    journal.write_bytes(whole + struct.pack(">I", 0x40000000 // 4096 + 1) + name + end)
    for write in (False, True):
        with pytest.raises(StorageError, match="names another file: remove it"):
            FrameStore(copy.path, write=write)
    for damage in (pipe, link):
        journal.unlink()
        journal.write_bytes(whole)
        damage(journal)
        with pytest.raises(
            StorageError, match="is not a regular file, but for example a symbolic link"
        ):
            FrameStore(copy.path)
    assert outside.read_text(encoding="utf-8") == "mine"


def test_what_could_not_be_read_again_is_not_saved(store):
    """The error comes when the state is saved, not when it is restored."""
    unknown = {
        "object": np.array([None]),
        "complex128": np.ones(1, complex),
        "float8_e4m3fn": np.ones(1, ml_dtypes.float8_e4m3fn),
    }
    for kind, array in unknown.items():
        with pytest.raises(StorageError, match=rf"cannot be saved: w \({kind}\)"):
            store.commit(rows(9), {"v": np.ones(1), "w": array}, {"step": 9})
    assert store.state()[1] == {"step": 6}
    check_rows(store, 0, 3, 6)


def test_arrays_of_all_kinds_are_read_as_they_were_saved(store):
    arrays = {
        "bfloat16": np.ones(2, ml_dtypes.bfloat16),
        "float16": np.full((2, 3), 0.1, np.float16),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "scalar": np.float32(0.5),
        "empty": np.zeros((0, 3)),
        "bool": np.array([True, False]),
        "uint64": np.array([2**64 - 1], np.uint64),
    }
    store.commit(None, arrays)
    loaded, _ = store.state()
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], np.asarray(array), strict=True)


class Opened:
    """An object that makes a directory if it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("unpickled",))


def test_a_state_runs_no_code(store, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    file = store.path / "state-000003.safetensors"
    with open(file, "wb") as opened:
        np.savez(opened, w=np.array([Opened()], dtype=object))
    size, sha256 = fingerprint(file)
    forge(
        store,
        "UPDATE files SET bytes = ?, sha256 = ? WHERE kind = 'state'",
        *(size, sha256),
    )
    with pytest.raises(StorageError, match="holds no arrays"):
        FrameStore(store.path).state()
    assert not (tmp_path / "unpickled").exists()


def test_what_a_commit_costs_does_not_grow(store):
    """Ten commits cost the same after 5,000 parts as after 500, in bytes written and in files opened or listed."""
    opened = 0

    def listed(event, arguments):
        nonlocal opened
        if counting and event in ("open", "os.listdir", "os.scandir"):
            opened += 1

    def written():
        """Return the number of bytes that this process has written so far, including SQLite's bytes."""
        return int(re.search(r"wchar: (\d+)", Path("/proc/self/io").read_text())[1])

    counting = False
    sys.addaudithook(
        listed
    )  # Audit hooks cannot be removed; `counting` switches this one off.
    costs = []
    store.append(rows(0))  # Only the first save reads the columns of the saved rows.
    for number in (500, 5000):
        first = len(store._index.parts())
        store._index.save(
            *(Entry("part", n, 1, 1, "0" * 64) for n in range(first, number))
        )
        before, opened, counting = written(), 0, True
        for step in range(10):
            store.commit(rows(0).head(1), {"w": np.zeros(4)}, {"step": step})
        counting = False
        costs.append((written() - before, opened))
    (few_bytes, few_files), (many_bytes, many_files) = costs
    assert many_bytes < 1.1 * few_bytes
    assert many_files == few_files


# Crashes and full disks


def test_a_commit_that_dies_at_any_act_leaves_all_or_nothing(store, tmp_path):
    """Wherever the process dies, rows and state belong to the same commit, and the next process can continue."""
    store.close()
    seen = set()
    for at in itertools.count(1):
        place = shutil.copytree(store.path, tmp_path / str(at))
        with FrameStore(place, write=True) as copy:
            try:
                with dying(at):
                    copy.commit(rows(10), {"w": np.zeros(1)}, {"step": 10})
            except Died:
                died = True
            else:
                died = False
        with FrameStore(place, write=True) as again:
            done = again.about["step"] == 10
            seen.add((died, done))
            check_rows(again, 0, 3, 6, *[10] * done)
            again.state()
            if not done:
                again.commit(rows(10), STATE, {"step": 10})
            again.commit(rows(11), STATE, {"step": 11})
            check_rows(again, 0, 3, 6, 10, 11)
            assert [name for name in names(again) if name.startswith("state")] == [
                again._index.latest("state").file
            ]
            assert not list(place.glob(".*.part"))
        if not died:
            break
    assert seen == {(True, False), (True, True), (False, True)}
    assert at > 7  # Operations: flush, rename and flush for each file, and one removal.


def in_mid_commit(store, place):
    """Copy a store in the middle of a commit: SQLite has flushed its journal and changed the index."""
    entries = [Entry("part", number, 1, 1, "0" * 64) for number in range(3, 200)]
    with store._index._opened(write=True) as database:
        database.execute("PRAGMA cache_size=1")  # Makes SQLite write at once.
        database.execute("DELETE FROM files WHERE number = 1")
        database.executemany(
            "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(*entry, entry.seal) for entry in entries],
        )
        shutil.copytree(store.path, place)
        database.execute("ROLLBACK")
        database.execute("BEGIN")
    assert (place / INDEX).read_bytes() != (store.path / INDEX).read_bytes()
    copy = FrameStore.__new__(FrameStore)
    copy.path = place
    return copy


@pytest.mark.parametrize("write", [False, True])
def test_a_commit_that_dies_within_sqlite_is_undone(store, tmp_path, write):
    copy = in_mid_commit(store, tmp_path / "copy")
    assert f"{INDEX}-journal" in names(copy)
    with FrameStore(copy.path, write=write) as again:
        assert f"{INDEX}-journal" not in names(copy)
        assert again.state()[1] == {"step": 6}
        check_rows(again, 0, 3, 6)


def test_a_transaction_waits_for_the_disk(store):
    """With these settings SQLite flushes journal and index, and the directory after it has removed the journal."""
    with store._index._opened(write=True) as database:
        values = [
            database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous")
        ]
    assert values == ["delete", 3]


def test_an_index_whose_writer_is_killed_at_random_moments(tmp_path):
    """After `kill -9` the index has all entries for which `save` has returned, and no half of a transaction."""
    FrameStore(tmp_path, write=True).close()
    index, rng = Index(tmp_path), np.random.default_rng(0)
    for _ in range(10):
        done = len(index.parts())
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                for number in itertools.count(done):
                    part = Entry("part", number, number, 1, "")
                    state = Entry("state", number, 0, 1, "")
                    index.save(part, state)
                    os.write(writer, b".")
            os._exit(1)
        os.close(writer)
        os.read(reader, 1)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        done += 1
        while received := os.read(reader, 1000):
            done += len(received)
        os.close(reader)
        index.check()
        assert len(index.parts()) in (done, done + 1)
        assert index.latest("state").number == index.latest("part").number


def test_readers_see_whole_commits_while_one_writes(store):
    seen, ended = [], threading.Event()

    def read():
        while not ended.is_set():
            reader = FrameStore(store.path)
            steps = reader.read()["step"].tolist()
            arrays, about = reader.state()
            seen.append((len(steps) % 72, arrays.keys(), about["step"] >= steps[-1]))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for step in range(9, 40, 3):
            store.commit(rows(step), STATE, {"step": step})
    finally:
        ended.set()
        thread.join()
    assert seen
    assert all(read == (0, STATE.keys(), True) for read in seen)


def test_a_reader_whose_state_is_replaced_reads_the_new_one(store, monkeypatch):
    reader, real = FrameStore(store.path), FrameStore._read_state

    def late(reader, entry):
        monkeypatch.undo()
        store.commit(None, {"w": np.ones(1)}, {"step": 9})
        return real(reader, entry)

    monkeypatch.setattr(FrameStore, "_read_state", late)
    arrays, about = reader.state()
    assert (arrays, about) == ({"w": np.ones(1)}, {"step": 9})


@pytest.mark.filterwarnings("default:.*no longer needed")
def test_an_old_state_that_cannot_be_removed_costs_nothing(store, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.warns(
        UserWarning,
        match=r"state-000003\.safetensors is no longer needed, but stays: Permission denied",
    ):
        store.commit(rows(9), STATE, {"step": 9})
    monkeypatch.undo()
    store.append(rows(12))
    check_rows(store, 0, 3, 6, 9, 12)
    assert store.about == {"step": 9}
    store.close()
    with FrameStore(store.path, write=True) as again:  # Opening removes the old state.
        assert [name for name in names(again) if name.startswith("state")] == [
            "state-000004.safetensors"
        ]
        assert again.state()[1] == {"step": 9}


def test_the_store_knows_what_the_disk_holds_whatever_stops_a_commit(
    store, monkeypatch
):
    """A commit is stopped just before, and just after, the index is saved. Its rows are then stored exactly once."""
    real = Index.save

    def stop(before):
        def save(index, *entries):
            if not before:
                real(index, *entries)
            raise KeyboardInterrupt

        monkeypatch.setattr(Index, "save", save)
        with pytest.raises(KeyboardInterrupt):
            store.commit(rows(9), STATE, {"step": 9})
        monkeypatch.undo()

    stop(before=True)
    assert (store.about, store.num_rows) == ({"step": 6}, 3 * 72)
    stop(before=False)
    assert (store.about, store.num_rows) == ({"step": 9}, 4 * 72)
    store.commit(rows(12), STATE, {"step": 12})
    for reader in (store, FrameStore(store.path)):
        check_rows(reader, 0, 3, 6, 9, 12)
        assert reader.state()[1] == {"step": 12}


def fill_up(store):
    """Commit until a commit fails. Return the error and the saved steps."""
    for step in range(9, 10_000):
        try:
            store.commit(rows(step), STATE, {"step": step})
        except StorageError as error:
            return error, list(range(9, step))
    raise AssertionError("the disk never gets full")


@pytest.fixture
def small_disk(tmp_path):
    """Path of a file system of 256 KiB. The test is skipped if it cannot be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting a small tmpfs takes the rights of root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_is_told_and_nothing_is_lost(small_disk):
    with FrameStore(small_disk / "frame", write=True) as store:
        error, steps = fill_up(store)
        assert (
            "No space left on device; free space there; earlier saves are complete"
            in str(error)
        )
        assert steps
        check_rows(scan_frame(store.path), *steps)
        assert store.state()[1] == {"step": steps[-1]}
        assert not list(store.path.glob(".*.part"))


def test_a_file_that_may_not_grow_is_told_and_nothing_is_lost(store):
    """A limit on file sizes replaces the full disk: no file can grow beyond 4 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(
            StorageError, match=r"cannot write .*part-000003\.parquet: File too large"
        ):
            store.commit(rows(9), STATE, {"step": 9})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    check_rows(store, 0, 3, 6)
    store.append(rows(9))
    check_rows(store, 0, 3, 6, 9)


@pytest.fixture
def read_only():
    """A directory that this process may not write to. If the process runs as root, it becomes another user."""
    place = Path(tempfile.mkdtemp())
    place.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IROTH | stat.S_IXOTH)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield place
    os.seteuid(user)
    shutil.rmtree(place)


@contextlib.contextmanager
def root():
    """Within this block, a process that `read_only` has changed to another user is root again."""
    user = os.geteuid()
    os.seteuid(os.getuid())
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def parquet():
    """Let pandas import its Parquet engine now, because another user may not be able to read the environment."""
    rows(0).to_parquet(io.BytesIO())


def test_a_directory_that_may_not_be_written(parquet, read_only):
    with pytest.raises(
        StorageError,
        match=r"cannot write .*: Permission denied; make it writable or choose another",
    ):
        FrameStore(read_only / "frame", write=True)
    with pytest.raises(
        StorageError, match=r"cannot write .*frame\.parquet: Permission denied"
    ):
        srel_tf.write_frame(rows(0), read_only / "frame.parquet")


def test_a_directory_that_may_not_be_written_is_read(store, read_only):
    """If a killed process has left a journal in such a directory, the error gives the remedy."""
    with root():
        copy = in_mid_commit(store, store.path.parent / "copy")
        shutil.copytree(store.path, read_only / "frame")
        shutil.copytree(copy.path, read_only / "killed")
        for path in [read_only, *read_only.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
    reader = FrameStore(read_only / "frame")
    check_rows(reader, 0, 3, 6)
    assert reader.state()[1] == {"step": 6}
    with pytest.raises(StorageError, match=r"Permission denied"):
        FrameStore(read_only / "frame", write=True)
    with pytest.raises(
        StorageError,
        match=r"open the directory once with permission to write there, or open a copy of it",
    ):
        FrameStore(read_only / "killed")


def test_the_old_file_stays_where_the_block_fails(tmp_path):
    file = tmp_path / "file"
    file.write_text("old", encoding="utf-8")

    def fail():
        with replacing(file) as part:
            part.write_text("new", encoding="utf-8")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert file.read_text(encoding="utf-8") == "old"


# Reading piece by piece


@pytest.mark.parametrize("cut", [1, 36, 50, 1000])
def test_pieces_cut_no_measurement(store, cut):
    pieces = list(store.scan().pieces(rows=cut))
    pd.testing.assert_frame_equal(
        pd.concat(pieces, ignore_index=True), all_rows(0, 3, 6), check_exact=True
    )
    seen = [
        key
        for piece in pieces
        for key in piece.groupby(["step", "measure"], sort=False).size().items()
    ]
    assert seen == [
        ((step, measure), 36) for step in (0, 3, 6) for measure in ("kl", "l1")
    ]


def test_statistics_of_a_stored_frame_are_those_of_the_frame(store, monkeypatch):
    monkeypatch.setattr("srel_tf.frames.lazy.ROWS_AT_A_TIME", 50)
    for statistic in (smooth, separation, lambda f: smooth(f, diagonal=False)):
        pd.testing.assert_frame_equal(
            statistic(store.scan()), statistic(all_rows(0, 3, 6)), check_exact=True
        )


def test_rows_that_do_not_stand_together_are_refused(tmp_path):
    with FrameStore(tmp_path / "frame", write=True) as store:
        store.append(rows(0).head(10))
        store.append(rows(3))
        store.append(rows(0).tail(62))
        with pytest.raises(FrameError, match="are not contiguous"):
            list(store.scan().pieces(rows=8))


def earlier_version(frame, limit=()):
    """Convert rows to a version without `method`. The sources in `limit` have the estimator "limit"."""
    by_limit = frame["source_id"].isin(limit)
    return frame.assign(estimator=frame["estimator"].mask(by_limit, "limit")).drop(
        columns="method"
    )


def its_methods(frame):
    return frame["estimator"].map({"exact": "finite_step", "limit": "limit"})


@pytest.mark.parametrize("first_is_old", [True, False])
def test_files_of_an_earlier_version_get_their_methods(tmp_path, first_is_old):
    """A row keeps the `method` of its file. If the file has none, `method` follows from the estimator."""
    old = earlier_version(rows(0), limit=[1, 4])
    new = rows(3, estimator="auto")
    files = [tmp_path / "old.parquet", tmp_path / "new.parquet"]
    for file, frame in zip(files, (old, new), strict=True):
        srel_tf.write_frame(frame, file)
    expected = [old.assign(method=its_methods(old))[[*new.columns]], new]
    if not first_is_old:
        files, expected = files[::-1], expected[::-1]
    expected = pd.concat(expected, ignore_index=True)
    frame = srel_tf.StoredFrame(files)
    pd.testing.assert_frame_equal(frame.read(), expected, check_exact=True)
    columns = ["method", "srel"]
    parts = pd.concat(
        [table.to_pandas() for table in frame.tables(50, columns)], ignore_index=True
    )
    pd.testing.assert_frame_equal(parts, expected[columns], check_exact=True)
    late = frame.read(pa.compute.field("step") == 3)
    pd.testing.assert_frame_equal(
        late, expected[expected["step"] == 3].reset_index(drop=True), check_exact=True
    )


def test_a_store_of_an_earlier_version_goes_on(tmp_path):
    old = earlier_version(rows(0))
    with FrameStore(tmp_path / "frame", write=True) as store:
        store.append(old)
    with FrameStore(tmp_path / "frame", write=True) as store:
        store.append(rows(3))
        expected = all_rows(0, 3)
        pd.testing.assert_frame_equal(store.read(), expected, check_exact=True)
        pd.testing.assert_frame_equal(
            smooth(store.scan()), smooth(expected), check_exact=True
        )
        exported = store.export(tmp_path / "frame.parquet", more=rows(6))
    pd.testing.assert_frame_equal(
        srel_tf.read_frame(exported), all_rows(0, 3, 6), check_exact=True
    )


def test_statistics_of_an_old_auto_frame_keep_the_estimators_it_was_saved_with(
    tmp_path, monkeypatch
):
    """Rows of the two estimators alternate. If the frame does not fit into one piece, it cannot be read in pieces."""
    old = earlier_version(rows(0), limit=[1, 4])
    path = srel_tf.write_frame(old, tmp_path / "frame.parquet")
    for pairs in (smooth(scan_frame(path)), smooth(scan_frame(path).read())):
        for estimator in ("exact", "limit"):
            of_estimator = pairs[pairs["estimator"] == estimator].reset_index(drop=True)
            pd.testing.assert_frame_equal(
                of_estimator, smooth(old[old["estimator"] == estimator])
            )
    monkeypatch.setattr("srel_tf.frames.lazy.ROWS_AT_A_TIME", 10)
    with pytest.raises(
        FrameError, match="are not contiguous: read the frame into memory"
    ):
        smooth(scan_frame(path))


def test_statistics_on_the_disk_have_no_method(store, tmp_path):
    path = srel_tf.write_frame(smooth(store.read()), tmp_path / "pairs.parquet")
    pd.testing.assert_frame_equal(
        scan_frame(path).read(), smooth(store.read()), check_exact=True
    )


def test_there_is_no_frame(tmp_path):
    for path in (tmp_path, tmp_path / "lost.parquet", tmp_path / "frame.csv"):
        with pytest.raises(FrameError, match="there is no frame"):
            scan_frame(path)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(FrameError, match=r"bad\.parquet .*is not a frame"):
        scan_frame(tmp_path / "bad.parquet")


def test_json_is_read_without_surprises(tmp_path):
    write_json(tmp_path / "x.json", {"a": "ä", "b": 0.1})
    assert (
        read_json(tmp_path / "x.json")
        == {"a": "ä", "b": 0.1}
        == json.loads((tmp_path / "x.json").read_bytes())
    )
    with pytest.raises(StorageError, match="No such file"):
        read_json(tmp_path / "lost.json")
