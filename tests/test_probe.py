"""Probe sets: their examples, order and names, and the inputs that are refused."""

import numpy as np
import pytest

from srel_tf import ProbeError, ProbeSet

X = np.arange(60, dtype=np.float32).reshape(60, 1)
Y = np.arange(60) % 3
NAMES = ["cat", "dog", "owl"]


def test_default_is_everything_on_both_sides():
    probe = ProbeSet(X, Y)
    assert len(probe) == 60
    for indices in (probe.ids, probe.sources, probe.targets, probe.own_columns):
        np.testing.assert_array_equal(indices, np.arange(60))
    assert probe.classes.tolist() == [str(label) for label in Y]


def test_names():
    probe = ProbeSet(X, Y, name="a")
    other = probe.with_name("b")
    assert (ProbeSet(X, Y).name, probe.name, other.name) == ("", "a", "b")
    assert other.fingerprint == probe.fingerprint
    assert ProbeSet.sample(X, Y, per_class=1, name="c").name == "c"
    for make in (lambda: ProbeSet(X, Y, name=3), lambda: probe.with_name(None)):
        with pytest.raises(ProbeError, match=r"name=(3|None): give a string"):
            make()


def test_labels_as_they_come():
    one_hot = np.eye(3)[Y]
    for y in (Y, Y[:, None], Y.astype(np.uint8), one_hot, one_hot.astype(np.float32)):
        probe = ProbeSet(X, y, class_names=NAMES)
        np.testing.assert_array_equal(probe.labels, Y)
        assert probe.classes.tolist() == [NAMES[label] for label in Y]
        assert probe.y.shape == y.shape  # y is passed to the loss unchanged.


@pytest.mark.parametrize(
    "y", [Y + 0.5, Y.astype(float), np.stack([Y, 1 - Y], axis=1), np.eye(3)[Y] * 2.0]
)
def test_regression_targets_have_no_class(y):
    probe = ProbeSet(X, y)
    assert probe.labels is None
    assert set(probe.classes) == {""}
    np.testing.assert_array_equal(probe.y, y)


def test_sample_takes_the_classes_in_the_order_wanted():
    probe = ProbeSet.sample(
        X, Y, per_class=4, classes=["owl", "cat"], class_names=NAMES
    )
    assert probe.classes.tolist() == ["owl"] * 4 + ["cat"] * 4
    assert ProbeSet.sample(X, Y, per_class=1, classes=[2, 0]).classes.tolist() == [
        "2",
        "0",
    ]
    assert ProbeSet.sample(
        X, Y, per_class=1, classes=[2, "cat"], class_names=NAMES
    ).classes.tolist() == ["owl", "cat"]
    assert ProbeSet.sample(X, Y, per_class=1).classes.tolist() == ["0", "1", "2"]


def test_sample_takes_whole_floating_point_numbers_for_class_indices():
    whole, broken = Y.astype("float32"), Y + 0.5
    probe = ProbeSet.sample(
        X, whole, per_class=4, classes=["owl", "cat"], class_names=NAMES
    )
    np.testing.assert_array_equal(
        probe.ids, ProbeSet.sample(X, Y, 4, classes=[2, 0]).ids
    )
    assert probe.classes.tolist() == ["owl"] * 4 + ["cat"] * 4
    np.testing.assert_array_equal(
        probe.y, whole[probe.ids]
    )  # y is passed to the loss unchanged.
    with pytest.raises(ProbeError, match="give class indices or one-hot rows"):
        ProbeSet.sample(X, broken)


def test_floating_point_numbers_read_as_class_indices():
    probe = ProbeSet(X, Y.astype(float), class_names=NAMES)
    read = probe.with_class_indices()
    np.testing.assert_array_equal(read.labels, Y)
    assert read.classes.tolist() == [NAMES[label] for label in Y]
    assert probe.labels is None  # The original probe is unchanged.
    with pytest.raises(ProbeError, match=r"y is 0\.5 for example b"):
        ProbeSet(X[:3], np.array([2, 0.5, 1]), ids=["a", "b", "c"]).with_class_indices()
    with pytest.raises(ProbeError, match=r"label 2 of example 0 .* 2 class names"):
        ProbeSet(X[:2], np.array([2.0, 0]), class_names=NAMES[:2]).with_class_indices()


def test_sample_draws_without_replacement_and_keeps_positions():
    probe = ProbeSet.sample(X, Y, per_class=20, class_names=NAMES)  # All examples.
    assert sorted(probe.ids) == list(range(60))
    np.testing.assert_array_equal(probe.x[:, 0], probe.ids)  # X[i] is i
    np.testing.assert_array_equal(probe.y, Y[probe.ids])
    assert not np.array_equal(probe.ids, np.sort(probe.ids))  # The order is random.


def test_draw_of_a_class_does_not_depend_on_the_others():
    def drawn(classes):
        probe = ProbeSet.sample(X, Y, per_class=5, seed=3, classes=classes)
        return probe.ids[probe.labels == 1].tolist()

    assert drawn([1]) == drawn([0, 1, 2]) == drawn([2, 1])


def test_seed_decides_the_draw():
    ids = [ProbeSet.sample(X, Y, per_class=5, seed=s).ids.tolist() for s in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    same_positions = np.array(ids[0]).reshape(3, 5) // 3
    assert (
        len({tuple(row) for row in same_positions}) == 3
    )  # The draws of the classes differ.


def test_sample_of_one_hot_rows_keeps_them():
    probe = ProbeSet.sample(X, np.eye(3)[Y], per_class=2, classes=[1])
    np.testing.assert_array_equal(probe.y, [[0, 1, 0]] * 2)


def test_own_columns():
    probe = ProbeSet(X, Y, sources=[7, 2, 30], targets=[1, 2, 3, 7])
    assert probe.own_columns.tolist() == [3, 1, -1]


@pytest.mark.parametrize("ids", [["a", "b", "c"], [30, 10, 20]])
def test_ids_are_kept(ids):
    assert ProbeSet(X[:3], Y[:3], ids=ids).ids.tolist() == ids


@pytest.mark.parametrize(
    "ids", [np.array([3, 1], np.uint8), np.array(["b", "a"], object)]
)
def test_ids_are_of_two_types(ids):
    """Ids are int64 or str, so that the frames of two probes can be joined."""
    found = ProbeSet(X[:2], Y[:2], ids=ids).ids
    assert found.tolist() == ids.tolist()
    assert found.dtype == np.int64 or found.dtype.kind == "U"


BAD_VALUES = X.copy()
BAD_VALUES[17] = np.nan


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProbeSet(X, Y[:59]), r"\(60, 1\).*\(59,\)"),
        (lambda: ProbeSet(X[:0], Y[:0]), r"\(0, 1\).*n ≥ 1"),
        (lambda: ProbeSet(np.float32(1), Y), r"shape \(\)"),
        (lambda: ProbeSet(X, np.array(NAMES)[Y]), "y has dtype <U3"),
        (lambda: ProbeSet(X.astype(object), Y), "x has dtype object"),
        (lambda: ProbeSet(BAD_VALUES, Y), "x is NaN or infinite in example 17"),
        (
            lambda: ProbeSet(X, np.where(Y == 1, np.inf, 0.0)),
            "y is NaN or infinite in example 1",
        ),
        (
            lambda: ProbeSet(X, Y, class_names=NAMES[:2]),
            "label 2 of example 2 .* 2 class names",
        ),
        (lambda: ProbeSet(X, Y - 1, class_names=NAMES), "label -1 of example 0"),
        (
            lambda: ProbeSet(X, Y, class_names=["cat", "dog", "cat"]),
            "'cat' is the name of two classes",
        ),
        (lambda: ProbeSet(X, Y, ids=np.arange(59)), r"60 different values.*\(59,\)"),
        (lambda: ProbeSet(X, Y, ids=np.zeros(60, int)), "60 different values"),
        (
            lambda: ProbeSet(X[:2], Y[:2], ids=[0.5, 1.5]),
            r"ids=.*0\.5.*integers or strings",
        ),
        (lambda: ProbeSet(X[:2], Y[:2], ids=[None, "a"]), "integers or strings"),
        (
            lambda: ProbeSet(X[:2], Y[:2], ids=np.array([0, 2**63], np.uint64)),
            "integers or strings",
        ),
        (lambda: ProbeSet(X, Y, sources=[0, 60]), r"sources=.*60.*0 to 59"),
        (lambda: ProbeSet(X, Y, targets=[-1]), r"targets=.*-1.*0 to 59"),
        (lambda: ProbeSet(X, Y, sources=[1, 1]), r"sources=.*1, 1"),
        (lambda: ProbeSet(X, Y, sources=[]), "sources="),
        (lambda: ProbeSet(X, Y, targets=[0.5]), r"targets=.*0\.5"),
        (lambda: ProbeSet(X, Y, targets=np.array([[0], [1]])), "targets="),
        (
            lambda: ProbeSet.sample(X, Y, per_class=21),
            "class 0 has 20 examples, but 21 are requested",
        ),
        (lambda: ProbeSet.sample(X, Y, per_class=0), "per_class=0"),
        (lambda: ProbeSet.sample(X, Y, classes=[5]), r"unknown class 5.*\[0, 1, 2\]"),
        (lambda: ProbeSet.sample(X, Y, classes=[-1]), "unknown class -1"),
        (
            lambda: ProbeSet.sample(X, Y, classes=["fox"], class_names=NAMES),
            "unknown class 'fox'.*cat",
        ),
        (lambda: ProbeSet.sample(X, Y, classes=["cat"]), "unknown class 'cat'"),
        (
            lambda: ProbeSet.sample(X, Y, per_class=2, classes=[1, 1]),
            r"classes=\[1, 1\].*twice",
        ),
        (lambda: ProbeSet.sample(X, Y, per_class=2, classes=[]), r"classes=\[\]"),
        (lambda: ProbeSet.sample(X, Y + 0.5), r"\(60,\) and dtype float64"),
        (
            lambda: ProbeSet({"a": X}, Y),
            "x has dtype object.*dict.*give one numeric array",
        ),
        (
            lambda: ProbeSet([[1.0], [1.0, 2.0]], [0, 1]),
            "x cannot be converted to an array.*inhomogeneous",
        ),
    ],
)
def test_refused_with_the_value_named(make, message):
    with pytest.raises(ProbeError, match=message):
        make()
