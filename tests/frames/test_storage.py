"""Frames in parts: readable whatever happens, damage named, memory bounded; no TensorFlow."""

import collections
import errno
import io
import itertools
import json
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pytest

import srel_tf
from srel_tf import FrameError, FrameStore, StorageError, scan_frame, separation, smooth
from srel_tf.files import read_json, replacing, write_json
from srel_tf.frames.arrays import read_arrays
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


@pytest.fixture
def store(tmp_path):
    """Three parts and a state."""
    with FrameStore(tmp_path / "frame", write=True) as made:
        for step in (0, 3, 6):
            made.commit(rows(step), STATE, {"step": step})
        yield made


def all_rows(*steps):
    return pd.concat([rows(s) for s in steps], ignore_index=True)


def names(store):
    return sorted(p.name for p in store.path.iterdir() if not p.name.startswith("."))


def test_what_is_saved_is_read(store):
    assert names(store) == [
        "index.json",
        *(f"part-00000{i}.parquet" for i in range(3)),
        "state-000003.npz",
    ]
    for reader in (store, FrameStore(store.path), scan_frame(store.path)):
        pd.testing.assert_frame_equal(
            reader.read(), all_rows(0, 3, 6), check_exact=True
        )
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
    pd.testing.assert_frame_equal(
        scan_frame(store.path).read(), all_rows(0, 3, 6, 9), check_exact=True
    )


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
    assert names(store) == ["index.json"]
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
        "state-old.npz",
    )
    for name in (*others, ".important.download.part", ".7.part", "state-000000.npz/x"):
        (store.path / name).parent.mkdir(exist_ok=True)
        (store.path / name).write_text("mine", encoding="utf-8")
    (store.path / ".index.json.77.srel_tf.part").write_text("half", encoding="utf-8")
    before = {
        path
        for path in store.path.rglob("*")
        if path.is_file() and path.read_bytes() == b"mine"
    }
    store.close()
    with pytest.warns(
        UserWarning, match=r"state-000000\.npz is no longer needed, but stays"
    ):
        again = FrameStore(store.path, write=True)
    again.commit(rows(9), STATE, {"step": 9})
    pd.testing.assert_frame_equal(again.read(), all_rows(0, 3, 6, 9), check_exact=True)
    with (
        pytest.warns(
            UserWarning, match=r"state-000000\.npz is no longer needed, but stays"
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
    with pytest.raises(FrameError, match=r"source_id: int64 there, .*string now"):
        store.append(named)
    with pytest.raises(FrameError, match="srel: double there, None now"):
        store.append(rows(9).drop(columns="srel"))
    pd.testing.assert_frame_equal(store.read(), all_rows(0, 3, 6))


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
    pipe: "is no regular file",
    link: "is a link",
    Path.unlink: "is missing",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_part_is_named_and_left_out_only_if_asked(store, damage):
    damage(store.path / "part-000001.parquet")
    with pytest.raises(
        StorageError,
        match=rf"of the 3 parts of .*, 1 .*: part-000001\.parquet {DAMAGE[damage]}",
    ):
        store.scan()
    pd.testing.assert_frame_equal(
        store.read(skip_damaged=True), all_rows(0, 6), check_exact=True
    )
    pd.testing.assert_frame_equal(
        scan_frame(store.path, skip_damaged=True).read(),
        all_rows(0, 6),
        check_exact=True,
    )


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_parts_are_left_out_for_good(store, damage):
    damage(store.path / "part-000000.parquet")
    with pytest.raises(StorageError, match=rf"part-000000\.parquet {DAMAGE[damage]}"):
        store.check()
    store.check(skip_damaged=True)
    store.append(rows(9))
    for reader in (store, FrameStore(store.path)):
        reader.check()
        pd.testing.assert_frame_equal(
            reader.read(), all_rows(3, 6, 9), check_exact=True
        )


def test_rows_are_not_added_to_a_damaged_first_part(store):
    store.close()
    truncate(store.path / "part-000000.parquet")
    with (
        FrameStore(store.path, write=True) as again,
        pytest.raises(FrameError, match=r"part-000000\.parquet .*damaged"),
    ):
        again.append(rows(9))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_named(store, damage):
    damage(store.path / "state-000003.npz")
    with pytest.raises(
        StorageError,
        match=rf"state-000003\.npz {DAMAGE[damage]}: start again without it",
    ):
        store.state()


def test_a_damaged_index_is_told(store):
    index = store.path / "index.json"
    content = index.read_text(encoding="utf-8")
    for text, message in (
        (content[:-9], "cannot be read as JSON"),
        (content.replace('"rows": 72', '"rows": 71'), "has been altered"),
        ("[1]", "holds a list, not an object"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"format": 99}', "has format 99, this version reads 2"),
    ):
        index.write_text(text, encoding="utf-8")
        with pytest.raises(StorageError, match=message):
            FrameStore(store.path)
    index.unlink()
    os.mkfifo(index)
    with pytest.raises(StorageError, match="no regular file"):
        FrameStore(store.path)


@pytest.mark.parametrize("kept", ["part-000001.parquet", "state-000003.npz"])
def test_a_lost_index_forgets_nothing(store, kept):
    store.close()
    for name in set(names(store)) - {kept}:
        (store.path / name).unlink()
    for opened in (FrameStore, scan_frame, lambda path: FrameStore(path, write=True)):
        with pytest.raises(
            StorageError,
            match=rf"{store.path} holds parts of a frame, but no index\.json: restore it",
        ):
            opened(store.path)
        assert names(store) == [kept]
    with FrameStore(store.path, write=True, anew=True) as again:
        assert (names(store), again.num_rows, again.state()) == (
            ["index.json"],
            0,
            None,
        )


def test_a_damaged_index_can_be_given_up(store):
    store.close()
    (store.path / "index.json").write_text("{", encoding="utf-8")
    with FrameStore(store.path, write=True, anew=True) as again:
        again.append(rows(9))
    pd.testing.assert_frame_equal(
        scan_frame(store.path).read(), all_rows(9), check_exact=True
    )


def test_a_crash_in_the_first_commit_leaves_an_empty_store(tmp_path, monkeypatch):
    def die(*_):
        raise SystemExit

    with FrameStore(tmp_path, write=True) as store:
        monkeypatch.setattr("srel_tf.frames.index.write_json", die)
        with pytest.raises(SystemExit):
            store.commit(rows(0), STATE)
    monkeypatch.undo()
    assert names(store) == ["index.json", "part-000000.parquet", "state-000001.npz"]
    with FrameStore(tmp_path, write=True) as again:
        assert (again.num_rows, again.state()) == (0, None)


def test_there_is_nothing_to_read(tmp_path):
    for path in (tmp_path, tmp_path / "lost"):
        with pytest.raises(
            StorageError, match=r"holds no frame: it has no index\.json"
        ):
            FrameStore(path)
    assert not (tmp_path / "lost").exists()


@pytest.mark.parametrize(
    "name",
    [
        "../outside.parquet",
        "/etc/passwd",
        "part-000001.parquet/../x",
        "index.json",
        "",
        7,
    ],
)
def test_an_index_cannot_lead_elsewhere(store, name):
    """Even with a checksum that fits."""
    index = read_json(store.path / "index.json")
    index.pop("sha256")
    index["parts"][1]["file"] = name
    write_json(
        store.path / "index.json",
        {**index, "sha256": srel_tf.frames.index.checksum(index)},
    )
    with pytest.raises(StorageError, match="name other places"):
        FrameStore(store.path)


@pytest.mark.parametrize("array", [np.array([None]), np.ones(2, ml_dtypes.bfloat16)])
def test_what_could_not_be_read_again_is_not_saved(store, array):
    """Now, not when the run is to go on."""
    with pytest.raises(
        StorageError, match=r"cannot be saved without pickle: w \((object|bfloat16)\)"
    ):
        store.commit(rows(9), {"w": array}, {"step": 9})
    assert store.state()[1] == {"step": 6}
    pd.testing.assert_frame_equal(store.read(), all_rows(0, 3, 6))


class Opened:
    """An object whose unpickling would show."""

    def __reduce__(self):
        return (os.mkdir, ("unpickled",))


def test_a_state_that_would_unpack_to_more_than_it_is_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "state.npz", w=np.zeros(2**20))
    with pytest.raises(StorageError, match="they are compressed, as ours never are"):
        read_arrays(tmp_path / "state.npz")


def test_a_state_runs_no_code(store, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "evil.npz", w=np.array([Opened()], dtype=object))
    file = store.path / "state-000003.npz"
    shutil.move(tmp_path / "evil.npz", file)
    index = read_json(store.path / "index.json")
    index.pop("sha256")
    index["state"] |= {
        "bytes": file.stat().st_size,
        "sha256": srel_tf.files.sha256(file),
    }
    write_json(
        store.path / "index.json",
        {**index, "sha256": srel_tf.frames.index.checksum(index)},
    )
    with pytest.raises(StorageError, match="holds no arrays"):
        FrameStore(store.path).state()
    assert not (tmp_path / "unpickled").exists()


# An index of many parts


@pytest.fixture
def paged(tmp_path, monkeypatch):
    """Pages of 3 parts: the index names 4 … 6, the first of which fill two pages."""
    monkeypatch.setattr("srel_tf.frames.index.PARTS_PER_PAGE", 3)
    with FrameStore(tmp_path / "frame", write=True) as made:
        for step in range(7):
            made.append(rows(step, measures=["l1"]))
        yield made


def paged_rows(*steps):
    return pd.concat([rows(s, measures=["l1"]) for s in steps], ignore_index=True)


def test_an_index_goes_on_over_pages(paged):
    assert [name for name in names(paged) if name.startswith("index")] == [
        *("index-000003.json", "index-000006.json", "index.json")
    ]
    assert [
        len(read_json(paged.path / f"index{n}.json")["parts"])
        for n in ("-000003", "-000006", "")
    ] == [3, 3, 1]
    paged.close()
    with FrameStore(paged.path, write=True) as again:
        for step in (7, 8, 9):
            again.append(rows(step, measures=["l1"]))
        for reader in (again, FrameStore(again.path)):
            assert reader.num_rows == 10 * 36
            pd.testing.assert_frame_equal(
                reader.read(), paged_rows(*range(10)), check_exact=True
            )
        again.clear()
        assert names(again) == ["index.json"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_page_is_named(paged, damage):
    damage(paged.path / "index-000003.json")
    with pytest.raises(
        StorageError,
        match=rf"the page .*index-000003\.json of the index {DAMAGE[damage]}: restore it",
    ):
        FrameStore(paged.path)


def test_parts_of_all_pages_are_left_out_for_good(paged):
    for number in (0, 4, 6):
        truncate(paged.path / f"part-{number:06}.parquet")
    for store in (paged, FrameStore(paged.path)):
        with pytest.raises(
            StorageError, match=r"of the 7 parts .*, 3 cannot be trusted"
        ):
            store.check()
    paged.check(skip_damaged=True)
    for step in (7, 8, 9):
        paged.append(rows(step, measures=["l1"]))
    for store in (paged, FrameStore(paged.path)):
        store.check()
        assert [(part["file"], part["rows"]) for part in store.left_out] == [
            (f"part-00000{number}.parquet", 36) for number in (0, 4, 6)
        ]
        assert all(
            re.fullmatch(DAMAGE[truncate], part["fault"]) for part in store.left_out
        )
        assert store.num_rows == 7 * 36
        pd.testing.assert_frame_equal(
            store.read(), paged_rows(1, 2, 3, 5, 7, 8, 9), check_exact=True
        )


def forge(file, change):
    """Change an index or a page, as a stranger would who makes all the checksums after it fit."""
    index = file.with_name("index.json")
    content = read_json(file)
    change(content)
    if file != index:
        write_json(file, content)
        content = read_json(index)
        content["before"] |= srel_tf.files.fingerprint(file)
    content.pop("sha256", None)
    write_json(index, {**content, "sha256": srel_tf.frames.index.checksum(content)})


PART_0 = {"file": "part-000000.parquet", "rows": 36, "fault": ""}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("index", lambda c: c["before"].update(file="../index-000006.json")),
        ("index", lambda c: c["before"].update(parts=7)),
        ("index", lambda c: c.update(before=[])),
        ("index", lambda c: c["parts"][0].update(file="part-000007.parquet")),
        ("index", lambda c: c["parts"][0].update(rows=-1)),
        (
            "index",
            lambda c: c.update(
                left_out=[{"file": "part-000099.parquet", "rows": 36, "fault": ""}]
            ),
        ),
        ("index", lambda c: c.update(left_out=[{**PART_0, "rows": 35}])),
        ("index", lambda c: c.update(left_out=[PART_0, PART_0])),
        ("index", lambda c: c.update(saved=True)),
        ("index", lambda c: c.update(state={"file": "state-000001.npz"})),
        ("index-000006", lambda c: c.update(parts=[])),
        ("index-000006", lambda c: c["parts"].pop()),
        ("index-000006", lambda c: c["parts"][0].update(rows=35)),
        ("index-000006", lambda c: c["parts"][0].update(file="../part-000003.parquet")),
        ("index-000006", lambda c: c["before"].update(rows=0)),
        ("index-000006", lambda c: c.update(before=None)),
        ("index-000006", lambda c: c.update(more=1)),
    ],
)
def test_a_forged_index_is_told(paged, name, change):
    forge(paged.path / f"{name}.json", lambda content: None)
    assert FrameStore(paged.path).num_rows == 7 * 36
    forge(paged.path / f"{name}.json", change)
    with pytest.raises(
        StorageError,
        match=r"is not (the index of a frame|a page of this index)|is missing",
    ):
        FrameStore(paged.path)


def test_what_a_commit_costs_does_not_grow(tmp_path, monkeypatch):
    """In bytes and files written, and in files looked for and read: commits 60 … 79 as 20 … 39."""
    costs, cost = [], collections.Counter()
    real = os.replace

    def replace(source, target):
        cost.update({"files": 1, "bytes": Path(source).stat().st_size})
        real(source, target)

    def listed(event, arguments):
        if counting and event in ("open", "os.listdir", "os.scandir"):
            cost[event] += 1

    counting = False
    sys.addaudithook(listed)  # For good: it ends with `counting`.
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr("srel_tf.frames.index.PARTS_PER_PAGE", 5)
    frame = rows(0).head(1)
    with FrameStore(tmp_path / "frame", write=True) as store:
        for number in range(80):
            counting = True
            store.commit(frame, {"w": np.zeros(4)}, {"step": number})
            counting = False
            costs.append(dict(cost))
            cost.clear()
    # From one page to the next the index grows; each page costs the same.
    assert costs[20:40] == costs[60:80]
    assert {c["files"] for c in costs} == {3, 4}


# Crashes and full disks


@pytest.mark.parametrize("writes_a_page", [False, True])
def test_a_commit_that_dies_at_any_act_leaves_all_or_nothing(
    paged, tmp_path, writes_a_page
):
    """Wherever the process dies, rows and state stay those of one moment, and the next process goes on from there."""
    more = range(7, 9) if writes_a_page else ()
    for step in more:
        paged.append(rows(step, measures=["l1"]))
    paged.commit(None, STATE, {"step": 9})
    paged.close()
    before, seen = [*range(7), *more], set()
    for at in itertools.count(1):
        place = shutil.copytree(paged.path, tmp_path / str(at))
        with FrameStore(place, write=True) as store:
            try:
                with dying(at):
                    store.commit(
                        rows(10, measures=["l1"]), {"w": np.zeros(1)}, {"step": 10}
                    )
            except Died:
                died = True
            else:
                died = False
        with FrameStore(place, write=True) as again:
            done = again.about["step"] == 10
            seen.add((died, done))
            pd.testing.assert_frame_equal(
                again.read(), paged_rows(*before, *[10] * done), check_exact=True
            )
            again.state()
            if not done:
                again.commit(rows(10, measures=["l1"]), STATE, {"step": 10})
            again.commit(rows(11, measures=["l1"]), STATE, {"step": 11})
            pd.testing.assert_frame_equal(
                again.read(), paged_rows(*before, 10, 11), check_exact=True
            )
            assert [name for name in names(again) if name.startswith("state")] == [
                again._index.state["file"]
            ]
            assert not list(place.glob(".*.part"))
        if not died:
            break
    assert seen == {(True, False), (True, True), (False, True)}
    assert at > (
        12 if writes_a_page else 9
    )  # A flush, a rename, a flush for each file.


@pytest.mark.filterwarnings("default:.*no longer needed")
def test_an_old_state_that_cannot_be_removed_costs_nothing(store, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.warns(
        UserWarning,
        match=r"state-000003\.npz is no longer needed, but stays: Permission denied",
    ):
        store.commit(rows(9), STATE, {"step": 9})
    monkeypatch.undo()
    store.append(rows(12))
    pd.testing.assert_frame_equal(
        store.read(), all_rows(0, 3, 6, 9, 12), check_exact=True
    )
    assert store.about == {"step": 9}
    store.close()
    with FrameStore(store.path, write=True) as again:  # Which tidies up.
        assert [name for name in names(again) if name.startswith("state")] == [
            "state-000004.npz"
        ]
        assert again.state()[1] == {"step": 9}


def test_the_store_knows_what_the_disk_holds_whatever_stops_a_commit(
    store, monkeypatch
):
    """Stopped just before the index takes its place, and just after: the same call leaves the rows once."""
    real = os.replace

    def stop(before):
        def replace(source, target):
            if Path(target).name != "index.json":
                return real(source, target)
            if not before:
                real(source, target)
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            store.commit(rows(9), STATE, {"step": 9})
        monkeypatch.undo()

    stop(before=True)
    assert (store.about, store.num_rows) == ({"step": 6}, 3 * 72)
    stop(before=False)
    assert (store.about, store.num_rows) == ({"step": 9}, 4 * 72)
    store.commit(rows(12), STATE, {"step": 12})
    for reader in (store, FrameStore(store.path)):
        pd.testing.assert_frame_equal(
            reader.read(), all_rows(0, 3, 6, 9, 12), check_exact=True
        )
        assert reader.state()[1] == {"step": 12}


def fill_up(store):
    """Commit until it fails; the error, and the steps that were saved."""
    for step in range(9, 10_000):
        try:
            store.commit(rows(step), STATE, {"step": step})
        except StorageError as error:
            return error, list(range(9, step))
    raise AssertionError("the disk never gets full")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB, where the system lets us mount one."""
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
        assert error.__cause__.errno == errno.ENOSPC
        assert "free space there; what was saved before is whole" in str(error)
        assert steps
        pd.testing.assert_frame_equal(
            scan_frame(store.path).read(), all_rows(*steps), check_exact=True
        )
        assert store.state()[1] == {"step": steps[-1]}
        assert not list(store.path.glob(".*.part"))


def test_a_file_that_may_not_grow_is_told_and_nothing_is_lost(store):
    """Without a file system of our own: the system ends each file at 4 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(
            StorageError, match=r"cannot write .*part-000003\.parquet: File too large"
        ):
            store.commit(rows(9), STATE, {"step": 9})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    pd.testing.assert_frame_equal(store.read(), all_rows(0, 3, 6), check_exact=True)
    store.append(rows(9))
    pd.testing.assert_frame_equal(store.read(), all_rows(0, 3, 6, 9), check_exact=True)


@pytest.fixture
def read_only():
    """A directory that this process may not write to: root has to become someone else for that."""
    place = Path(tempfile.mkdtemp())
    place.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IROTH | stat.S_IXOTH)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield place
    os.seteuid(user)
    shutil.rmtree(place)


@pytest.fixture
def parquet():
    """pandas imports its engine when it first writes, from an environment that another user may not be able to read."""
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


@pytest.mark.parametrize("cut", [1, 7, 36, 50, 72, 1000])
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
        with pytest.raises(FrameError, match="do not stand together"):
            list(store.scan().pieces(rows=8))


def earlier_version(frame, limit=()):
    """Rows as a version without `method` wrote them, those of some sources by the limit."""
    by_limit = frame["source_id"].isin(limit)
    return frame.assign(estimator=frame["estimator"].mask(by_limit, "limit")).drop(
        columns="method"
    )


def its_methods(frame):
    return frame["estimator"].map({"exact": "finite_step", "limit": "limit"})


@pytest.mark.parametrize("first_is_old", [True, False])
def test_files_of_an_earlier_version_get_their_methods(tmp_path, first_is_old):
    """A row has the `method` of its file; if the file has none, it is taken from the estimator."""
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
    """Its rows alternate: where a piece would cut one of the two off, reading it in pieces is refused."""
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
        FrameError, match="do not stand together: read the frame into memory"
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
    with pytest.raises(FrameError, match=r"bad\.parquet .*hold no frame"):
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
