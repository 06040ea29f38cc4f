"""Frames have the specified schema, and files give frames back unchanged."""

import numpy as np
import pandas as pd
import pytest

from srel_tf import FrameError, ProbeSet, read_frame, separation, smooth, write_frame
from srel_tf.frames import schema as frames
from srel_tf.frames.schema import rule_names
from tests.made_up import SCHEMA, probe, result


def frame_of(**kwargs):
    made = result(
        probe(3, 2, sources=[4, 0], targets=[1, 4, 2, 0]).with_name("b"),
        step=12,
        invalid=0.3,
        **kwargs,
    )
    return made, made.to_frame(run="a", seed=5, epoch=1.5)


def test_columns_and_their_types():
    _, frame = frame_of()
    assert (
        list(frame.columns)
        == SCHEMA
        == list(frames.COLUMNS)
        == list(frames.empty().columns)
    )
    assert {name: str(frame[name].dtype) for name in ("seed", "step", "valid")} == {
        "seed": "Int64",
        "step": "Int64",
        "valid": "bool",
    }
    floats = ["epoch", "learning_rate", "numerator", "denominator", "srel"]
    assert (frame[floats].dtypes == np.float64).all()


def test_one_row_a_measure_source_and_target():
    made, frame = frame_of()
    rows = [
        (
            measure,
            source,
            target,
            m.numerator[i, j],
            m.denominator[i],
            m.srel[i, j],
            m.valid[i, j],
        )
        for measure, m in made.matrices.items()
        for i, source in enumerate([4, 0])
        for j, target in enumerate([1, 4, 2, 0])
    ]
    names = [
        "measure",
        "source_id",
        "target_id",
        "numerator",
        "denominator",
        "srel",
        "valid",
    ]
    pd.testing.assert_frame_equal(frame[names], pd.DataFrame(rows, columns=names))
    class_of = dict(zip(range(6), ["cat"] * 3 + ["dog"] * 3, strict=True))
    assert frame["source_class"].tolist() == [class_of[i] for i in frame["source_id"]]
    assert frame["target_class"].tolist() == [class_of[i] for i in frame["target_id"]]
    constant = (
        frame[[*frames.MATRIX, "method"]].drop(columns="measure").drop_duplicates()
    )
    assert constant.to_numpy().tolist() == [
        ["a", 5, "b", 12, 1.5, "sgd", "exact", 0.1, "finite_step"]
    ]


@pytest.mark.parametrize("estimator", ["exact", "limit", "auto"])
def test_estimator_is_what_was_asked_and_method_how_each_row_was_computed(estimator):
    made, frame = frame_of(estimator=estimator)
    assert set(frame["estimator"]) == {estimator}
    expected = [
        m.method[i] for m in made.matrices.values() for i in range(2) for _ in range(4)
    ]
    assert frame["method"].tolist() == expected
    assert len(set(expected)) == (2 if estimator == "auto" else 1)


def test_no_seed_no_step_no_epoch():
    frame = result(probe(), step=None).to_frame()
    assert frame["seed"].isna().all()
    assert frame["step"].isna().all()
    assert frame["epoch"].isna().all()
    assert (frame["run"] == "").all()


def class_names_that_look_like_something_else():
    x, y = np.ones((4, 1)), np.arange(4)
    return result(
        ProbeSet(x, y, ["3", "NA", "", "1.50"], ids=[7, 5, 3, 1]), measures=["l1"]
    ).to_frame()


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: frame_of()[1],
        lambda: result(
            probe(ids=list("wxyz")), step=None
        ).to_frame(),  # No seed, step or epoch; run is "".
        lambda: result(
            ProbeSet(np.ones((3, 1)), np.ones(3) / 3)
        ).to_frame(),  # Regression, without classes.
        class_names_that_look_like_something_else,
    ],
)
def test_files_give_back_the_frame(tmp_path, suffix, make):
    frame = make()
    path = write_frame(frame, tmp_path / f"frame{suffix}")
    assert path == tmp_path / f"frame{suffix}"
    pd.testing.assert_frame_equal(read_frame(path), frame, check_exact=True)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "ids",
    [
        ["007", "7", "8", "9"],
        ["1", "2", "3", "x"],
        [-1, 0, 12, 7],
        ["1e3", "2", "3", "4"],
    ],
)
def test_ids_in_csv_are_numbers_only_where_all_are_written_so(tmp_path, ids):
    frame = result(probe(ids=ids, sources=[1, 2]), measures=["l1"]).to_frame()
    again = read_frame(write_frame(frame, tmp_path / "frame.csv"))
    pd.testing.assert_frame_equal(again, frame, check_exact=True)
    assert (
        again["source_id"] == again["target_id"]
    ).sum() == 2  # Ids of sources and targets have the same type.


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".csv", b""),
        (".csv", b"a,b\n1,2\n3,4,5\n"),
        (".csv", b"\xff\xfe"),
        (".parquet", b"PAR1"),
    ],
)
def test_damaged_files_are_named(tmp_path, suffix, content):
    (tmp_path / f"frame{suffix}").write_bytes(content)
    with pytest.raises(
        FrameError, match=rf"frame\{suffix} holds no frame, or a damaged one"
    ):
        read_frame(tmp_path / f"frame{suffix}")


def test_other_tables_go_through_csv(tmp_path):
    table = pd.DataFrame(
        {
            "run": ["seed-0", "seed-1"],
            "epoch": [1, 2],
            "split": ["train", "test"],
            "loss": [0.1, np.nan],
        }
    )
    pd.testing.assert_frame_equal(
        read_frame(write_frame(table, tmp_path / "history.csv")),
        table,
        check_exact=True,
    )


@pytest.mark.parametrize(
    ("suffix", "writer"), [(".parquet", "to_parquet"), (".csv", "to_csv")]
)
def test_a_failing_writer_leaves_the_old_file(tmp_path, monkeypatch, suffix, writer):
    _, frame = frame_of()
    path = write_frame(frame, tmp_path / f"frame{suffix}")

    def half_a_file(self, part, **_):
        with open(part, "w", encoding="utf-8") as file:
            file.write("half")
        raise OSError("no space left on device")

    monkeypatch.setattr(pd.DataFrame, writer, half_a_file)
    with pytest.raises(OSError, match="no space left"):
        write_frame(frame.head(1), path)
    monkeypatch.undo()
    pd.testing.assert_frame_equal(read_frame(path), frame)


def test_files_that_are_not_there_or_of_another_kind(tmp_path):
    with pytest.raises(FrameError, match=r"there is no frame .*lost\.parquet"):
        read_frame(tmp_path / "lost.parquet")
    for path in ("frame.xlsx", "frame"):
        with pytest.raises(FrameError, match=f"{path}.*parquet or .csv"):
            read_frame(path)
        with pytest.raises(FrameError, match=f"{path}.*parquet or .csv"):
            write_frame(frame_of()[1], path)


def test_check_columns():
    frames.check_columns(frame_of()[1], ["srel"])
    with pytest.raises(FrameError, match=r"lacks the columns \['colour'\].*'srel'"):
        frames.check_columns(frame_of()[1], ["srel", "colour"])
    with pytest.raises(FrameError, match="got list"):
        frames.check_columns([1], ["srel"])


def frame_of_an_earlier_version(estimators=("exact", "limit")):
    """Make a frame as an earlier version wrote it: without `name` and `method`, and with the method in `estimator`."""
    frame = frame_of()[1].drop(columns=["name", "method"])
    frame["estimator"] = np.where(frame["source_id"] == 4, *estimators)
    return frame.astype({"estimator": "str"})


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_frame_of_an_earlier_version_gets_its_names_and_methods(tmp_path, suffix):
    old = frame_of_an_earlier_version()
    frame = read_frame(write_frame(old, tmp_path / f"frame{suffix}"))
    assert list(frame.columns) == SCHEMA
    assert (frame["name"] == "").all()
    assert frame["method"].tolist() == [
        "finite_step" if s == 4 else "limit" for s in frame["source_id"]
    ]
    pd.testing.assert_frame_equal(frame[old.columns], old, check_exact=True)
    pd.testing.assert_frame_equal(
        read_frame(write_frame(frame, tmp_path / f"again{suffix}")), frame
    )


def test_a_method_that_nothing_tells_is_missing(tmp_path):
    frame = read_frame(
        write_frame(
            frame_of_an_earlier_version(["exact", "other"]), tmp_path / "frame.parquet"
        )
    )
    assert frame["method"].isna().tolist() == (frame["source_id"] != 4).tolist()


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_statistics_get_no_method(tmp_path, suffix):
    for table in (smooth(frame_of()[1]), separation(frame_of()[1])):
        assert "method" not in read_frame(
            write_frame(table, tmp_path / f"table{suffix}")
        )


def test_rule_names_are_of_each_row_alone():
    index = [7, 3, 5, 4, 6]
    columns = {
        "name": ["", "", "", "η=0.1", "η=0.1"],
        "update": ["sgd", "sgd", "sgd", "fresh_adam", "sgd"],
        "estimator": ["exact", "auto", "limit", "exact", "auto"],
    }
    frame = pd.DataFrame(columns, index)
    expected = ["sgd", "sgd, auto", "limit", "fresh_adam η=0.1", "sgd η=0.1, auto"]
    names = pd.Series(expected, index, name="rule", dtype="str")
    pd.testing.assert_series_equal(rule_names(frame), names)
    for row in index:
        assert rule_names(frame.loc[[row]]).tolist() == [names[row]]
    unnamed = rule_names(frame.drop(columns="name")).tolist()
    assert unnamed == ["sgd", "sgd, auto", "limit", "fresh_adam", "sgd, auto"]


def test_rows_of_several_probes_stand_together_by_measurement():
    """Rows are ordered by step, and then by probe and measure. Probes with equal settings form one measurement."""

    def of(first_id, steps, **options):
        made = probe(2, 2, ids=range(first_id, first_id + 4))
        return pd.concat(
            [
                result(made, s, **options).to_frame(run="a", seed=5, epoch=s / 9)
                for s in steps
            ]
        )

    parts = [
        of(0, (0, 3, 6)),
        of(10, (0, 6)),
        of(20, (3, 6), update="fresh_adam", measures=["l1"]),
    ]
    frame = frames.merged(parts)
    firsts = frame[["step", "update", "measure", "source_id"]][::16].to_numpy().tolist()
    assert firsts == [
        *(
            [0, "sgd", "kl", 0],
            [0, "sgd", "kl", 10],
            [0, "sgd", "l1", 0],
            [0, "sgd", "l1", 10],
        ),
        *([3, "sgd", "kl", 0], [3, "sgd", "l1", 0], [3, "fresh_adam", "l1", 20]),
        *(
            [6, "sgd", "kl", 0],
            [6, "sgd", "kl", 10],
            [6, "sgd", "l1", 0],
            [6, "sgd", "l1", 10],
        ),
        [6, "fresh_adam", "l1", 20],
    ]
    columns = [*frame.columns]
    rows = pd.concat(parts).sort_values(columns, ignore_index=True)
    pd.testing.assert_frame_equal(frame.sort_values(columns, ignore_index=True), rows)


def test_the_rows_of_one_probe_stay_in_their_order():
    auto = result(probe(2, 2), 3, estimator="auto").to_frame(
        run="a", seed=None, epoch=np.nan
    )
    pd.testing.assert_frame_equal(frames.merged([auto]), auto)


def test_ids_of_two_types_are_no_column(tmp_path):
    made = [
        result(probe(2, 2, ids=ids)).to_frame(run="", seed=0, epoch=0.0)
        for ids in (range(4), list("abcd"))
    ]
    with pytest.raises(
        FrameError,
        match="ids of one probe are numbers, and the ids of another one are text",
    ):
        write_frame(frames.merged(made), tmp_path / "frame.parquet")
    assert not list(tmp_path.iterdir())
