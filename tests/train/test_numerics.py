"""Tests of `train.numerics`: the reference against closed forms, counts of wrong entries, the command on a tiny net."""

import dataclasses
import functools

import keras
import numpy as np
import pandas as pd
import pytest

import srel_tf
from train.numerics import command as numerics
from train.numerics import zoo, zoo_training
from train.numerics.distances import (
    change_of_log_softmax,
    distances_of_a_step,
    log_softmax,
)
from train.numerics.reference import TOLERANCE, Reference
from train.numerics.table import comparison

ETAS = (1e-8, 1e-3, 1e-1)


def linear():
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(3)(inputs))


def batch_norm():
    inputs = keras.Input((4,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(8)(inputs))
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.ReLU()(x)))


def blobs():
    """Make 12 examples of two classes that a linear net separates."""
    y = np.arange(12) % 2
    x = np.random.default_rng(0).normal(size=(12, 4)) + 3 * (2 * y[:, None] - 1)
    return x.astype("float32"), y


def tiny(
    build=batch_norm, stages=(zoo.UNTRAINED, zoo.STATISTICS, zoo.TRAINED), **options
):
    return zoo.Net(
        build,
        blobs,
        stages,
        per_class=3,
        etas=(1e-4, 1e-2),
        learning_rate=1e-2,
        **options,
    )


@pytest.fixture
def tiny_zoo(monkeypatch):
    monkeypatch.setitem(zoo.NETS, "tiny", tiny())
    return "tiny"


def test_reference_is_the_closed_form_of_a_linear_net():
    """For z = Wx + b, the step changes z(x') by −η(1 + x·x')(p − e_y). All measures follow from this change."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(6, 4)), np.arange(6) % 3
    kernel, bias = draw.normal(size=(4, 3)), draw.normal(size=3)
    net = dataclasses.replace(tiny(linear))
    found = Reference(net.compiled, x, y).srel([kernel, bias], ETAS)
    z = x @ kernel + bias
    p = np.exp(log_softmax(z))
    for eta in ETAS:
        for i in range(6):
            change = -eta * (1 + x @ x[i])[:, None] * (p[i] - np.eye(3)[y[i]])
            q = np.exp(log_softmax(z + change))
            d = {
                "l1": np.abs(q - p).sum(-1), "l2": np.linalg.norm(q - p, axis=-1), "raw_l1": np.abs(change).sum(-1),
                "raw_l2": np.linalg.norm(change, axis=-1), "kl": (q * np.log(q / p)).sum(-1),
            }  # fmt: skip
            for measure, distance in d.items():
                if eta == 1e-8 and measure == "kl":
                    continue  # The plain formula loses all digits here.
                error = 1e-6 if eta == 1e-8 or measure == "kl" else 1e-9
                np.testing.assert_allclose(
                    found[eta][measure][i],
                    distance / distance[i],
                    rtol=error,
                    atol=error,
                )
    for i in range(6):
        change = (1 + x @ x[i])[:, None] * (p[i] - np.eye(3)[y[i]])
        kl = [
            c @ (np.diag(row) - np.outer(row, row)) @ c
            for row, c in zip(p, change, strict=True)
        ]
        np.testing.assert_allclose(found[0.0]["kl"][i], kl / kl[i], rtol=1e-9)
        np.testing.assert_allclose(found[1e-8]["kl"][i], kl / kl[i], rtol=1e-5)
        np.testing.assert_allclose(
            found[0.0]["raw_l1"][i], np.abs(1 + x @ x[i]) / (1 + x[i] @ x[i]), rtol=1e-9
        )


def test_reference_resolves_steps_that_drown_in_float64():
    """At logits of 1e6, float64 has no digit of a change of 1e-10. The integral of the derivative is accurate."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(4, 4)), np.arange(4) % 3
    weights = [draw.normal(size=(4, 3)), 1e6 + draw.normal(size=3)]
    found = Reference(tiny(linear).compiled, x, y).srel(weights, (1e-10,))
    for i in range(4):
        ratio = np.abs(1 + x @ x[i]) / (1 + x[i] @ x[i])
        np.testing.assert_allclose(found[1e-10]["raw_l2"][i], ratio, rtol=1e-6)


@pytest.mark.parametrize("change", [1e-12, 1e-3, 3.0, 1e3, 1e5])
@pytest.mark.parametrize("scale", [1, 30, 1000])
def test_distances_against_many_digits(scale, change):
    mp = pytest.importorskip("mpmath")
    draw = np.random.default_rng(0)
    z, dz = draw.normal(size=3) * scale, draw.normal(size=3) * change
    with mp.workdps(1200):
        before = [mp.mpf(float(v)) for v in z]
        after = [a + mp.mpf(float(b)) for a, b in zip(before, dz, strict=True)]
        p, q = (
            [mp.e**v / mp.fsum(mp.e**u for u in logits) for v in logits]
            for logits in (before, after)
        )
        kl = float(mp.fsum(b * mp.log(b / a) for a, b in zip(p, q, strict=True)))
        l1 = float(mp.fsum(abs(b - a) for a, b in zip(p, q, strict=True)))
    found = distances_of_a_step(
        np.longdouble(z)[None], np.longdouble(dz)[None], softmax=False
    )
    np.testing.assert_allclose([found["kl"][0], found["l1"][0]], [kl, l1], rtol=1e-12)
    of_softmax = change_of_log_softmax(
        np.longdouble(log_softmax(z))[None], np.longdouble(dz)[None]
    )
    assert np.isfinite(of_softmax).all()


class Planted:
    """A fake result for one measure with S_rel `s`. An entry is not valid if it is NaN."""

    def __init__(self, s):
        self._s = np.array(s)

    def valid(self, measure):
        return ~np.isnan(self._s)

    def matrix(self, measure):
        return self._s


def test_counts_of_valid_entries_and_errors_in_units_of_the_tolerance():
    nan = np.nan
    reference = np.array([[1.0, 3.0], [1.0, 0.0], [nan, 1.0]])
    row = comparison(
        Planted([[1.0, 3.0], [nan, 0.0005], [2.0, 1.003]]), "l1", reference
    )
    counts = {
        name: row[name]
        for name in ("entries", "valid", "outside", "unreferenced", "without_reference")
    }
    assert counts == {
        "entries": 6,
        "valid": 5,
        "outside": 1,
        "unreferenced": 1,
        "without_reference": 1,
    }
    assert row["worst"] == pytest.approx(1.5)
    assert (row["worst_s"], row["worst_reference"], row["worst_pair"]) == (
        1.003,
        1.0,
        "2 1",
    )


def test_a_valid_infinity_is_outside_and_nothing_compared_has_no_worst_error():
    assert comparison(Planted([[np.inf]]), "kl", np.ones((1, 1)))["outside"] == 1
    assert np.isnan(
        comparison(Planted([[1.0]]), "kl", np.full((1, 1), np.nan))["worst"]
    )


def test_command_measures_every_stage_and_goes_on(tiny_zoo, tmp_path, capsys):
    options = [
        "--nets",
        tiny_zoo,
        "--out",
        str(tmp_path / "out"),
        "--cache",
        str(tmp_path / "cache"),
    ]
    options += ["--estimators", "exact", "limit"]
    assert numerics.main([*options, "--stages", zoo.UNTRAINED]) == 0
    assert numerics.main(options) == 0
    rows = pd.read_csv(tmp_path / "out" / "numerics.csv")
    # 3 stages, 2 η of exact and 1 of limit, all measures.
    assert len(rows) == 3 * (2 + 1) * len(TOLERANCE)
    assert (rows["entries"] == 36).all()
    assert rows["valid"].sum() > 0.5 * rows["entries"].sum()
    assert (rows["worst"].dropna() < 1).all()
    out, err = capsys.readouterr()
    assert "0 of " in out
    assert (
        err.count(f"tiny, {zoo.UNTRAINED}: loss")
        == err.count(f"tiny, {zoo.UNTRAINED}: ") - 1
        == 1
    )
    text = (tmp_path / "out" / "numerics.md").read_text(encoding="utf-8")
    assert text.count("| tiny |") == 6


def test_a_planted_error_is_counted_and_ends_the_command_with_1(
    tiny_zoo, monkeypatch, capsys
):
    right = srel_tf.SRelResult.matrix

    def wrong(result, measure):
        s = right(result, measure).copy()
        if measure == "l1":
            s[0, 1] *= 1.01
        return s

    monkeypatch.setattr(srel_tf.SRelResult, "matrix", wrong)
    options = ["--nets", tiny_zoo, "--stages", zoo.STATISTICS, "--estimators", "limit"]
    assert numerics.main(options) == 1
    assert "1 of " in capsys.readouterr().out


def test_statistics_come_from_the_data():
    keras.utils.set_random_seed(0)
    stages = {stage: weights for stage, weights, _ in stages_of(tiny())}
    x, _ = blobs()
    kernel, bias = stages[zoo.STATISTICS][:2]
    mean, variance = stages[zoo.STATISTICS][4:6]
    before = x @ kernel + bias
    np.testing.assert_allclose(mean, before.mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, before.var(0), rtol=1e-4)


def test_a_stage_that_is_not_reached_is_told_and_training_goes_on_later(
    tiny_zoo, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        zoo_training, "_reached", lambda stage, loss, accuracy: stage != zoo.TRAINED
    )
    options = ["--nets", tiny_zoo, "--cache", str(tmp_path), "--train-only"]
    assert numerics.main([*options, "--minutes", "0"]) == 1
    assert (
        "not yet 'accuracy 1.0': run again to continue the training"
        in capsys.readouterr().err
    )
    assert len(list(tmp_path.glob("*.partial.npz"))) == 1
    monkeypatch.undo()
    monkeypatch.setitem(zoo.NETS, "tiny", tiny())
    assert numerics.main(options) == 0
    assert not list(tmp_path.glob("*.partial.npz"))


def test_a_step_that_decides_for_one_class_forever():
    """Δz is so large that no digit of log p would be left in its difference from the largest Δz."""
    z = np.log([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    change = np.array([[0.0, 1e22, 3e21], [-1e22, 5e22, 0.0]])
    with np.errstate(over="ignore", invalid="ignore"):
        found = distances_of_a_step(
            np.longdouble(z), np.longdouble(change), softmax=False
        )
    # p⁺ is one for the second class.
    kl, l1 = (np.float64(found[name]) for name in ("kl", "l1"))
    np.testing.assert_allclose(kl, -np.log([0.3, 0.1]), rtol=1e-14)
    np.testing.assert_allclose(l1, [1.4, 1.8], rtol=1e-14)


def stages_of(net):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.NETS, "tiny", net)
        yield from zoo_training.Training("tiny").stages()


@pytest.mark.parametrize(
    "arguments", [["--nets", "resnet1"], ["--estimators", "most"], ["--per-class", "x"]]
)
def test_bad_options_are_named(arguments, capsys):
    with pytest.raises(SystemExit):
        numerics.main(arguments)
    assert arguments[1] in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        *("batch_norm", "mlp-softmax"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("vit", "lstm")),
    ],
)
def test_nets_of_the_zoo_have_a_reference(name):
    """All derivatives exist in float64, and S_rel of a small step is near the limit."""
    net = zoo.NETS[name]
    keras.utils.set_random_seed(0)
    weights = [0.9 * w if w.std() else w for w in net.compiled().get_weights()]
    x, y = net.data()
    found = Reference(net.compiled, x[::40], y[::40], net.softmax).srel(
        weights, (1e-9,)
    )
    for measure in ("raw_l1", "raw_l2"):
        np.testing.assert_allclose(found[1e-9][measure], found[0.0][measure], rtol=1e-3)


def test_probabilities_that_float64_rounds_to_one_have_a_reference():
    """S_rel of a net that returns the softmax of its logits is S_rel of the net that returns the logits."""
    x, y = zoo.NETS["mlp"].data()
    x, y = x[::40], y[::40]
    nets = [zoo.NETS[name] for name in ("mlp", "mlp-softmax")]
    keras.utils.set_random_seed(0)
    weights = [30 * w for w in nets[0].compiled().get_weights()]
    of_logits, of_probabilities = (
        Reference(net.compiled, x, y, net.softmax).srel(weights, (0.1,))[0.1]
        for net in nets
    )
    assert np.isfinite(of_logits["kl"]).any()
    for measure in ("kl", "l1"):
        np.testing.assert_allclose(
            of_probabilities[measure], of_logits[measure], rtol=1e-9
        )
    np.testing.assert_array_equal(of_probabilities["raw_l1"], of_probabilities["l1"])


def test_every_net_names_its_stages_and_the_net_that_trains_it():
    for name, net in zoo.NETS.items():
        assert (net.weights_of or name) in zoo.NETS
        assert set(net.stages) <= {
            *zoo.LOSSES,
            zoo.UNTRAINED,
            zoo.STATISTICS,
            zoo.TRAINED,
        }
        assert isinstance(net.data, functools.partial) or name == "batch_norm"
