"""Tests of run directories: they keep one set of settings and data, and files are written completely or not at all."""

import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest

import srel_tf
from tests.frames.dying import Died, dying
from train.common.run_directory import RunDirectory, RunDirectoryError, write_json

ABOUT = {"data": "abc", "probe_ids": [1, 2]}
SETTINGS = {"dataset": "digits", "classes": ["3", "5"], "epochs": 2, "augment": None}


def table(value=1.0):
    return pd.DataFrame({"step": [0, 9], "srel": [value, np.nan]})


@pytest.fixture
def used(tmp_path):
    """A directory with a finished seed."""
    directory = RunDirectory(tmp_path / "deep" / "run", SETTINGS)
    directory.check_data("abc")
    directory.save_seed(0, table(), table(), about={"seed": 0})
    return directory


def files(directory):
    found = [p for p in directory.path.rglob("*") if p.is_file() and p.name != ".lock"]
    return {str(p.relative_to(directory.path)): p.read_bytes() for p in found}


def test_what_it_holds(used):
    assert set(files(used)) == {
        *("settings.json", "environment.json", "data.json"),
        *("seed-0/frame.parquet", "seed-0/history.csv", "seed-0/seed.json"),
    }
    assert (
        json.loads((used.path / "settings.json").read_text(encoding="utf-8"))
        == SETTINGS
    )
    environment = json.loads(
        (used.path / "environment.json").read_text(encoding="utf-8")
    )
    assert environment["numpy"] == np.__version__
    assert {"python", "machine", "devices", "tensorflow", "keras"} <= set(environment)


def test_the_same_settings_reopen_it(used):
    before = files(used)
    # JSON stores the tuple as a list.
    again = RunDirectory(used.path, {**SETTINGS, "classes": ("3", "5")})
    again.check_data("abc")
    assert again.is_complete(0)
    assert not again.is_complete(1)
    assert files(again) == before


@pytest.mark.parametrize(
    ("other", "shown", "not_shown"),
    [
        ({**SETTINGS, "epochs": 3}, ["epochs: 2 saved, 3 now"], "dataset"),
        (
            {**SETTINGS, "classes": ["5", "3"]},
            [r"classes: \['3', '5'\] saved, \['5', '3'\] now"],
            "epochs",
        ),
        (
            {**SETTINGS, "every": 9, "epochs": 1},
            ["epochs: 2 saved, 1 now", "every: None saved, 9 now"],
            "classes",
        ),
        (
            {"dataset": "digits", "epochs": 2},
            [r"classes: \['3', '5'\] saved, None now"],
            "epochs",
        ),
    ],
)
def test_other_settings_are_refused_with_the_difference(used, other, shown, not_shown):
    before = files(used)
    for line in shown:
        with pytest.raises(
            RunDirectoryError,
            match=f"{used.path} holds results of other settings.*\n(.*\n)?  {line}",
        ):
            RunDirectory(used.path, other)
    with pytest.raises(RunDirectoryError) as refused:
        RunDirectory(used.path, other)
    assert f"{not_shown}:" not in str(refused.value)
    assert files(used) == before


@pytest.mark.parametrize("name", ["settings.json", "data.json", "history.csv"])
def test_files_of_others_are_neither_replaced_nor_removed(tmp_path, name):
    """The files may be from another program, or from a run whose seeds were moved away."""
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(
        RunDirectoryError,
        match=f"{tmp_path} holds {name}, but no seed .*: choose another --out",
    ):
        RunDirectory(tmp_path, SETTINGS)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"


def test_a_seed_of_another_run_is_refused(used, tmp_path):
    """The seed was copied here, or settings.json was edited. Its rows would be mixed with those of the other seeds."""
    other = RunDirectory(tmp_path / "other", {**SETTINGS, "epochs": 3})
    other.save_seed(1, table(), table(), about={"seed": 1})
    shutil.copytree(other.seed_path(1), used.seed_path(1))
    with pytest.raises(
        RunDirectoryError,
        match=r"seed-1 is not a seed of this run.*\n  epochs: 3 saved, 2 now",
    ):
        used.is_complete(1)
    write_json(used.path / "settings.json", {**SETTINGS, "epochs": 3})
    with pytest.raises(
        RunDirectoryError,
        match=r"seed-0 is not a seed of this run.*\n  epochs: 2 saved, 3 now",
    ):
        RunDirectory(used.path, {**SETTINGS, "epochs": 3}).is_complete(0)


def test_a_seed_under_another_number_is_refused(used):
    shutil.copytree(used.seed_path(0), used.seed_path(1))
    with pytest.raises(
        RunDirectoryError,
        match=r"seed-1 is not a seed of this run.*\n  seed: 0 saved, 1 now",
    ):
        used.is_complete(1)


def test_a_seed_from_before_marks_held_settings_counts(used):
    mark = used.seed_path(0) / "seed.json"
    about = json.loads(mark.read_text(encoding="utf-8"))
    del about["settings"]
    write_json(mark, about)
    assert used.is_complete(0)


def test_a_command_that_measured_nothing_binds_nobody(tmp_path):
    RunDirectory(tmp_path, {**SETTINGS, "epochs": -7}).check_data("abc")
    RunDirectory(tmp_path, SETTINGS).check_data("xyz")
    assert (
        json.loads((tmp_path / "settings.json").read_text(encoding="utf-8")) == SETTINGS
    )


def test_an_interrupted_seed_or_a_selection_binds_the_directory(tmp_path):
    RunDirectory(tmp_path / "a", SETTINGS).save_seed(0, table(), table())
    write_json(RunDirectory(tmp_path / "b", SETTINGS).path / "selection.json", {})
    for name in "ab":
        with pytest.raises(RunDirectoryError, match="other settings"):
            RunDirectory(tmp_path / name, {**SETTINGS, "epochs": 3})


@pytest.mark.parametrize("kept", ["frame.parquet", "seed.json"])
@pytest.mark.parametrize("lost", ["settings.json", "data.json"])
def test_results_without_their_origin_are_refused(used, lost, kept):
    (used.path / lost).unlink()
    for file in (used.path / "seed-0").iterdir():
        if file.name != kept:
            file.unlink()
    with pytest.raises(
        RunDirectoryError, match=f"holds results, but {lost} is missing: restore it"
    ):
        RunDirectory(used.path, SETTINGS).check_data("abc")


def test_other_data_are_refused(used):
    again = RunDirectory(used.path, SETTINGS)
    with pytest.raises(RunDirectoryError, match="results of other data"):
        again.check_data("xyz")
    again.check_data("abc")


@pytest.mark.parametrize("path", ["file", "file/run"])
def test_a_directory_that_cannot_be_written(tmp_path, path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(
        RunDirectoryError,
        match=f"cannot write to {tmp_path / path}: .*; choose another --out",
    ):
        RunDirectory(tmp_path / path, SETTINGS)
    assert issubclass(RunDirectoryError, srel_tf.SRelError)


def test_a_seed_that_cannot_be_written(used):
    (used.path / "seed-1").write_text("in the way", encoding="utf-8")
    with pytest.raises(RunDirectoryError, match=r"seed-1.*earlier saves are complete"):
        used.save_seed(1, table(), table())


def test_a_seed_is_complete_only_when_it_says_so(used):
    used.save_seed(1, table(), table())
    assert not used.is_complete(1)
    used.save_seed(1, table(), table(), about={"seed": 1})
    assert used.is_complete(1)


def test_frames_of_several_seeds_together(used):
    used.save_seed(4, table(2.0), table(3.0), about={"seed": 4})
    frame, history = used.frames([4, 0])
    pd.testing.assert_frame_equal(
        frame, pd.concat([table(2.0), table()], ignore_index=True)
    )
    pd.testing.assert_series_equal(
        history["srel"], pd.concat([table(3.0), table()], ignore_index=True)["srel"]
    )


def half_a_file(path, *_, **__):
    with open(path, "w", encoding="utf-8") as file:
        file.write("half")
    raise OSError("no space left on device")


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_json(tmp_path / "x.json", {"a": "ä"})
    monkeypatch.setattr("pathlib.Path.write_text", half_a_file)
    with pytest.raises(OSError, match="no space left"):
        write_json(tmp_path / "x.json", {"a": "new"})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"a": "ä"}


def test_a_crash_while_writing_leaves_what_was_saved_before(used, monkeypatch):
    before = files(used)
    monkeypatch.setattr(
        pd.DataFrame, "to_parquet", lambda self, path, **_: half_a_file(path)
    )
    with pytest.raises(RunDirectoryError, match="no space left"):
        used.save_seed(0, table(9.0), table(9.0), about={"seed": 0})
    assert {
        name: content
        for name, content in files(used).items()
        if not name.endswith(".part")
    } == before


@pytest.mark.parametrize("name", ["settings.json", "data.json", "seed-0/seed.json"])
@pytest.mark.parametrize("content", ["{", "[1]", '"x"', "\x00"])
def test_damaged_json_is_named(used, name, content):
    (used.path / name).write_text(content, encoding="utf-8")

    def reopen():
        again = RunDirectory(used.path, SETTINGS)
        again.check_data("abc")
        again.frames([0])

    with pytest.raises(RunDirectoryError, match=name.replace(".", r"\.")):
        reopen()


def test_a_finished_frame_that_was_altered_is_named(used):
    srel_tf.write_frame(table(7.0), used.path / "seed-0" / "frame.parquet")
    for read in (used.frames, used.scan):
        with pytest.raises(
            RunDirectoryError,
            match=r"frame\.parquet has changed since it was written.*delete .*seed\.json",
        ):
            read([0])


def test_settings_cannot_lead_outside(used, tmp_path):
    """Paths in settings.json are compared, but never opened."""
    stranger = {**SETTINGS, "dataset": "folder:/etc", "out": "../elsewhere"}
    write_json(used.path / "settings.json", stranger)
    with pytest.raises(
        RunDirectoryError, match=r"dataset: 'folder:/etc' saved, 'digits' now"
    ):
        RunDirectory(used.path, SETTINGS)
    assert [p.name for p in tmp_path.iterdir()] == ["deep"]


@pytest.fixture
def interrupted(used):
    """A directory in which seed 1 has saved rows and a state."""
    with used.store(1, used.note(ABOUT)) as store:
        store.commit(table(), {"w": np.ones(2)}, {"step": 5, "note": used.note(ABOUT)})
    return used


@pytest.mark.parametrize(
    "change",
    [{"numpy": "1.0"}, {"settings epochs": 9}, {"probe_ids": [1, 3]}, {"data": "xyz"}],
)
def test_a_seed_goes_on_only_as_it_was_begun(interrupted, change):
    note = {**interrupted.note(ABOUT), **change}
    (name,) = change
    with pytest.raises(
        RunDirectoryError,
        match=rf"return to those.* the differences are:\n  {name}: .* saved, .* now",
    ):
        interrupted.store(1, note, resume=True)
    with interrupted.store(1, interrupted.note(ABOUT), resume=True) as store:
        assert store.num_rows == 2
    with interrupted.store(1, note, restart=True) as store:
        assert store.num_rows == 0


def test_what_was_measured_is_not_forgotten_without_a_word(interrupted):
    with pytest.raises(
        RunDirectoryError,
        match=r"seed 1 .*; 5 updates and 2 rows .*: give --resume .*, or --restart",
    ):
        interrupted.store(1, interrupted.note(ABOUT))
    with interrupted.store(1, interrupted.note(ABOUT), resume=True) as store:
        assert store.num_rows == 2


def test_another_number_of_threads_does_not_go_on_with_a_seed(interrupted, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    with pytest.raises(RunDirectoryError, match=r"OMP_NUM_THREADS: .* saved, '77' now"):
        interrupted.store(1, interrupted.note(ABOUT), resume=True)


def test_other_sources_do_not_go_on_with_a_seed(interrupted, monkeypatch):
    monkeypatch.setattr("train.common.environment._sources", lambda: "other")
    with pytest.raises(
        RunDirectoryError, match=r"sources: '[0-9a-f]{64}' saved, 'other' now"
    ):
        interrupted.store(1, interrupted.note(ABOUT), resume=True)


def test_a_state_that_tells_nothing_of_its_origin_is_not_gone_on_with(used):
    with used.store(1, used.note(ABOUT)) as store:
        store.commit(table(), {"w": np.ones(2)}, {"note": None})
    with pytest.raises(RunDirectoryError, match=r"settings epochs: None saved, 2 now"):
        used.store(1, used.note(ABOUT), resume=True)


def test_damage_is_told_before_a_seed_goes_on(interrupted):
    (interrupted.seed_path(1) / "frame.parts" / "part-000000.parquet").write_bytes(
        b"PAR1"
    )
    note = interrupted.note(ABOUT)
    with pytest.raises(
        srel_tf.StorageError, match=r"part-000000\.parquet has 4 of its"
    ):
        interrupted.store(1, note, resume=True)
    with interrupted.store(1, note, resume=True, skip_damaged=True) as store:
        assert (store.num_rows, store.about["step"]) == (0, 5)


def test_a_seed_has_one_process(interrupted):
    note = interrupted.note(ABOUT)
    with (
        interrupted.store(1, note, resume=True),
        pytest.raises(srel_tf.StorageError, match="another process is writing"),
    ):
        interrupted.store(1, note)


def test_leftovers_of_a_killed_process_are_cleared_away(interrupted):
    (interrupted.path / ".settings.json.77.srel_tf.part").write_text(
        "half", encoding="utf-8"
    )
    (interrupted.seed_path(1) / "frame.parts" / "notes.txt").write_text(
        "mine", encoding="utf-8"
    )
    # As if the process had been killed after writing the mark and before removing the store.
    interrupted.save_seed(1, table(), table(), about={})
    with pytest.warns(
        UserWarning, match=r"frame\.parts is no longer needed, but stays: notes\.txt"
    ):
        again = RunDirectory(interrupted.path, SETTINGS)
    assert not list(again.path.glob(".*.part"))
    assert [p.name for p in (again.seed_path(1) / "frame.parts").iterdir()] == [
        "notes.txt"
    ]
    assert RunDirectory(interrupted.path, SETTINGS, shared=True).is_complete(1)


def test_leftovers_beside_a_frame_are_cleared_away(interrupted):
    """Only the process that holds the seed deletes them: without its lock, another process may be using them."""
    half = interrupted.seed_path(1) / ".frame.parquet.77.srel_tf.part"
    half.write_text("half", encoding="utf-8")
    again = RunDirectory(interrupted.path, SETTINGS)
    assert half.exists()
    again.store(1, again.note(ABOUT), resume=True).close()
    assert not half.exists()


DAMAGED = {
    "empty": "",
    "{}": "{}",
    "no sums": '{"sha256": {}}',
    "elsewhere": '{"sha256": {"../x": "", "history.csv": ""}}',
}


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_mark_is_told_and_what_is_there_stays(interrupted, content):
    """The seed is not run again, which would replace the frame. Parts from which it could continue are not deleted."""
    interrupted.save_seed(1, table(), table(), about={"seed": 1})
    (interrupted.seed_path(1) / "seed.json").write_text(
        DAMAGED[content], encoding="utf-8"
    )
    before = files(interrupted)
    again = RunDirectory(interrupted.path, SETTINGS)
    for use in (
        again.is_complete,
        lambda n: again.frames([n]),
        lambda n: again.save_seed(n, table(), table()),
    ):
        with pytest.raises(RunDirectoryError, match=r"seed\.json .*damaged"):
            use(1)
    assert files(again) == before
    (again.seed_path(1) / "seed.json").unlink()
    assert not again.is_complete(1)
    with again.store(1, again.note(ABOUT), resume=True) as store:
        assert store.num_rows == 2


@pytest.mark.parametrize("name", ["frame.parquet", "history.csv", "distances.parquet"])
@pytest.mark.parametrize("damage", ["altered", "lost"])
def test_a_seed_with_another_file_than_it_ended_with_is_not_finished(
    used, name, damage
):
    srel_tf.write_frame(table(5.0), used.seed_path(0) / "distances.parquet")
    used.save_seed(0, table(), table(), about={"seed": 0})
    file = used.seed_path(0) / name
    srel_tf.write_frame(table(7.0), file) if damage == "altered" else file.unlink()
    with pytest.raises(
        RunDirectoryError,
        match=rf"{name} has changed since it was written: restore it, or delete .*seed\.json",
    ):
        used.is_complete(0)


def test_who_comes_late_replaces_nothing_that_is_finished(used):
    before = files(used)
    used.save_seed(0, table(7.0), table(7.0))
    assert files(used) == before


@pytest.mark.filterwarnings("default:.*no longer needed")
def test_a_seed_that_dies_at_any_act_of_its_end_ends_the_same(interrupted, tmp_path):
    """The process dies at any act of writing frame, history and mark, or of removing the state."""
    note, marked = interrupted.note(ABOUT), []
    for at in itertools.count(1):
        path = shutil.copytree(interrupted.path, tmp_path / str(at))
        directory = RunDirectory(path, SETTINGS, shared=True)
        with directory.store(1, note, resume=True) as store:
            try:
                with dying(at):
                    directory.finish_seed(1, store, table(3.0), {"seed": 1})
            except Died:
                died = True
            else:
                died = False
        again = RunDirectory(path, SETTINGS)
        again.check_data("abc")
        marked.append(again.is_complete(1))
        if not marked[-1]:
            with again.store(1, note, resume=True) as store:
                assert store.about["step"] == 5
                again.finish_seed(1, store, table(3.0), {"seed": 1})
        assert {p.name for p in again.seed_path(1).iterdir()} == {
            "frame.parquet",
            "history.csv",
            "seed.json",
        }
        pd.testing.assert_frame_equal(again.frames([1])[0], table())
        # CSV does not store types.
        pd.testing.assert_frame_equal(
            again.histories([1]), table(3.0), check_dtype=False
        )
        if not died:
            break
    # The seed is not complete up to some act, and complete after it.
    assert marked == sorted(marked)
    # Each file takes three acts. The 8th act gives the mark its name.
    assert marked.count(False) == 8
    assert marked.count(True) > 5


def test_what_was_left_out_stands_in_the_mark(interrupted, capsys):
    note = interrupted.note(ABOUT)
    with interrupted.store(1, note, resume=True) as store:
        store.commit(table(9.0), {"w": np.ones(2)}, {"step": 6, "note": note})
    (interrupted.seed_path(1) / "frame.parts" / "part-000000.parquet").write_bytes(
        b"PAR1"
    )
    with pytest.raises(RunDirectoryError, match="versions, settings or data"):
        interrupted.store(
            1, {**note, "settings epochs": 9}, resume=True, skip_damaged=True
        )
    # The refused call did not leave out the damaged part.
    with pytest.raises(srel_tf.StorageError, match="1 cannot be used"):
        interrupted.store(1, note, resume=True)
    interrupted.store(1, note, resume=True, skip_damaged=True).close()
    with interrupted.store(1, note, resume=True) as store:
        interrupted.finish_seed(1, store, table(), {"seed": 1})
    (left_out,) = json.loads(
        (interrupted.seed_path(1) / "seed.json").read_text(encoding="utf-8")
    )["left_out"]
    assert (left_out["file"], left_out["rows"]) == ("part-000000.parquet", 2)
    assert left_out["fault"].startswith("has 4 of its")
    assert (
        "seed 1: 2 rows are left out, because part-000000.parquet has 4 of its"
        in capsys.readouterr().out
    )
    pd.testing.assert_frame_equal(interrupted.frames([1])[0], table(9.0))
