"""Figures that compare update rules, measures or origins. The content of each panel is read from its artists."""

import itertools

import numpy as np
import pandas as pd
import pytest

from srel_tf import FrameError
from srel_tf.plotting import plot_beside, plot_separation, plot_spread

RUNS, EPOCHS = ("a", "b", "c"), (0.0, 1.0, 2.0)


def quantiles(rules=("sgd", "fresh_adam"), measures=("kl", "l1")):
    rng = np.random.default_rng(0)
    rows = [
        (
            run,
            epoch,
            measure,
            rule,
            kind,
            *np.sort(10.0 ** rng.uniform(-4, 2, 3)),
            10.0 ** rng.uniform(-1, 2),
        )
        for run in RUNS
        for epoch in EPOCHS
        for measure in measures
        for rule in rules
        for kind in ("intra", "inter")
    ]
    return pd.DataFrame(
        rows,
        columns=[
            "run",
            "epoch",
            "measure",
            "rule",
            "kind",
            "q0.05",
            "q0.5",
            "q0.95",
            "mean",
        ],
    )


def separation(rules=("sgd", "limit"), measures=("kl", "l1", "l2")):
    rng = np.random.default_rng(1)
    rows = [
        (r, e, m, rule, rng.random())
        for r in RUNS
        for e in EPOCHS
        for m in measures
        for rule in rules
    ]
    return pd.DataFrame(rows, columns=["run", "epoch", "measure", "rule", "auc"])


def curves(decades=0.0):
    rng = np.random.default_rng(2)
    rows = [
        (
            origin,
            run,
            step,
            "l1",
            source,
            target,
            rng.uniform(1, 2) * 10 ** (decades * step),
        )
        for origin in ("ours", "published")
        for run in RUNS
        for step in (0, 1, 2)
        for source in ("cat", "dog")
        for target in ("cat", "dog")
    ]
    return pd.DataFrame(
        rows,
        columns=[
            "origin",
            "run",
            "step",
            "measure",
            "source_class",
            "target_class",
            "mean",
        ],
    )


def test_spread_draws_medians_means_and_quantiles_over_runs():
    frame = quantiles()
    means = frame.groupby(["rule", "measure", "kind", "epoch"])[
        ["q0.05", "q0.5", "q0.95", "mean"]
    ].mean()
    figure = plot_spread(frame)
    panels = [
        (rule, measure) for rule in ("sgd", "fresh_adam") for measure in ("kl", "l1")
    ]
    for ax, (rule, measure) in zip(figure.axes, panels, strict=True):
        assert ax.get_title().endswith(f"\n{rule}")
        drawn = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
        for kind, band in zip(("intra", "inter"), ax.collections, strict=True):
            expected = means.loc[rule, measure, kind]
            np.testing.assert_allclose(drawn[f"{kind}, median"], expected["q0.5"])
            np.testing.assert_allclose(drawn[f"{kind}, mean"], expected["mean"])
            edges = {(x, y) for x, y in band.get_paths()[0].vertices}
            assert {
                (e, expected.loc[e, q]) for e in EPOCHS for q in ("q0.05", "q0.95")
            } <= edges


@pytest.mark.parametrize(
    "power", [1, *(pytest.param(p, marks=pytest.mark.slow) for p in (0.2, 0.1)), 0.05]
)
def test_spread_writes_numbers_and_no_two_on_one_place_of_the_axis(power):
    """Labels of minor ticks would overlap if the axis spans decades. Within one decade there are no major ticks."""
    frame = quantiles()
    values = ["q0.05", "q0.5", "q0.95", "mean"]
    figure = plot_spread(frame.assign(**(0.3 * frame[values] ** power)))
    figure.draw_without_rendering()
    for ax in figure.axes:
        shown = [
            t
            for t in (*ax.get_yticklabels(), *ax.get_yticklabels(minor=True))
            if t.get_text()
        ]
        boxes = sorted(
            (t.get_window_extent().extents for t in shown), key=lambda box: box[1]
        )
        inside = [
            b for b in boxes if ax.bbox.y0 - 5 <= (b[1] + b[3]) / 2 <= ax.bbox.y1 + 5
        ]
        assert len(inside) >= 2
        assert all(below[3] <= above[1] for below, above in itertools.pairwise(inside))


def test_separation_draws_the_mean_auc_of_each_rule_and_chosen_measure():
    frame = separation()
    figure = plot_separation(frame, measures=("l1", "kl"))
    assert [ax.get_title() for ax in figure.axes] == ["sgd", "limit"]
    for ax in figure.axes:
        of = (
            frame[frame["rule"] == ax.get_title()]
            .groupby(["measure", "epoch"])["auc"]
            .mean()
        )
        drawn = [
            line.get_ydata()
            for line in ax.get_lines()
            if len(line.get_xdata()) == len(EPOCHS)
        ]
        for measure in ("kl", "l1"):
            assert any(np.allclose(values, of.loc[measure]) for values in drawn)
        assert not any(np.allclose(values, of.loc["l2"]) for values in drawn)
        assert ax.get_ylim() == (0, 1)
    with pytest.raises(FrameError, match="raw_l1"):
        plot_separation(frame, measures=("raw_l1",))


@pytest.mark.parametrize(("decades", "scale"), [(0.0, "linear"), (2.0, "log")])
def test_beside_draws_both_origins_of_each_class_pair(decades, scale):
    frame = curves(decades)
    figure = plot_beside(frame, "l1")
    for ax in figure.axes:
        ends = ax.get_title().split(" → ")
        assert ax.get_yscale() == scale
        for line, origin in zip(ax.get_lines(), ("ours", "published"), strict=True):
            rows = (
                frame.set_index(["origin", "source_class", "target_class"])
                .sort_index()
                .loc[(origin, *ends)]
            )
            np.testing.assert_allclose(
                line.get_ydata(), rows.groupby("step")["mean"].mean()
            )
            assert line.get_label() == origin
    with pytest.raises(FrameError, match="'kl'"):
        plot_beside(frame, "kl")
