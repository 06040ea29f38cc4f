"""Figures 3–5. Their content is read from their artists."""

import numpy as np
import pandas as pd
import pytest

from srel_tf import FrameError
from srel_tf.plotting import plot_distances, plot_pairs

RUNS, STEPS = ["seed-0", "seed-1", "seed-2"], [100, 200]


def made():
    """Make an S_rel frame of one target, 5 sources, 3 runs and 2 steps, and a frame of distances with two metrics."""
    generator = np.random.default_rng(0)
    rows = [
        (run, step, source) for run in RUNS for step in STEPS for source in range(1, 6)
    ]
    frame = pd.DataFrame(rows, columns=["run", "step", "source_id"])
    frame = frame.assign(
        target_id=0, measure="l1", srel=generator.uniform(0, 1, len(rows)), valid=True
    )
    distances = frame[["run", "step", "source_id", "target_id"]]
    parts = [
        distances.assign(metric=m, distance=generator.uniform(1, 5, len(rows)))
        for m in ("input", "features")
    ]
    return frame, pd.concat(parts, ignore_index=True)


def points_of(ax):
    return np.concatenate([c.get_offsets() for c in ax.collections])


def test_a_row_a_metric_and_a_panel_a_step():
    frame, distances = made()
    frame.loc[3, "valid"] = False
    figure = plot_distances(frame, distances)
    assert [ax.get_title() for ax in figure.axes] == ["$t$ = 100", "$t$ = 200"] * 2
    for ax, (metric, step) in zip(
        figure.axes, [(m, s) for m in ("input", "features") for s in STEPS], strict=True
    ):
        assert ax.get_xlabel() == f"$\\|x' - x_i\\|$, {metric}"
        joined = frame[frame["valid"]].merge(distances[distances["metric"] == metric])
        expected = joined.loc[joined["step"] == step, ["distance", "srel"]].to_numpy()
        np.testing.assert_allclose(
            np.sort(points_of(ax), axis=0), np.sort(expected, axis=0)
        )
        assert len(ax.collections) == 3  # One colour per run.


def test_distances_that_cannot_be_drawn():
    frame, distances = made()
    for wrong, message in (
        (frame.drop(columns="srel"), "lacks the columns"),
        (
            pd.concat([frame, frame.assign(target_id=9)]),
            "one target x' and one measure",
        ),
        (
            pd.concat([frame, frame.assign(measure="l2")]),
            "one target x' and one measure",
        ),
        (frame.assign(step=7), "no row of the frame has a distance"),
    ):
        with pytest.raises(FrameError, match=message):
            plot_distances(wrong, distances)


def curves(n_runs=3):
    generator = np.random.default_rng(1)
    rows = [
        (pair, run, step)
        for pair in ("near", "far")
        for run in RUNS[:n_runs]
        for step in range(4)
    ]
    pairs = pd.DataFrame(rows, columns=["pair", "run", "step"])
    pairs = pairs.assign(srel=generator.uniform(0, 1, len(rows)), valid=True)
    rows = [
        (split, run, step)
        for split in ("empirical", "population")
        for run in RUNS[:n_runs]
        for step in range(4)
    ]
    risks = pd.DataFrame(rows, columns=["split", "run", "step"])
    return pairs, risks.assign(loss=generator.uniform(1, 9, len(rows)))


def test_pairs_are_means_with_a_band_of_one_population_deviation():
    pairs, _ = curves()
    pairs.loc[2, "valid"] = False  # The row of pair near, run seed-0, step 2.
    (ax,) = plot_pairs(pairs).axes
    lines = {line.get_label(): line for line in ax.get_lines()}
    for (name, line), band in zip(lines.items(), ax.collections, strict=True):
        chosen = pairs[(pairs["pair"] == name.split(", ")[1]) & pairs["valid"]]
        values = [
            chosen.loc[chosen["step"] == step, "srel"].to_numpy() for step in range(4)
        ]
        np.testing.assert_array_equal(line.get_xdata(), range(4))
        np.testing.assert_allclose(line.get_ydata(), [v.mean() for v in values])
        vertices = band.get_paths()[0].vertices
        for step, v in enumerate(values):
            edges = vertices[vertices[:, 0] == step, 1]
            np.testing.assert_allclose(
                [edges.min(), edges.max()], [v.mean() - v.std(), v.mean() + v.std()]
            )
    assert "Figure 4" in ax.get_title()


def test_risks_lie_over_the_pairs_on_an_axis_of_their_own():
    pairs, risks = curves()
    left, right = plot_pairs(pairs, risks).axes
    assert (left.get_yscale(), right.get_yscale()) == ("linear", "log")
    for line, split in zip(right.get_lines(), ("empirical", "population"), strict=True):
        assert line.get_label() == f"{split} risk"
        np.testing.assert_allclose(
            line.get_ydata(),
            risks[risks["split"] == split].groupby("step")["loss"].mean(),
        )
    assert len({line.get_linestyle() for line in right.get_lines()}) == 2
    assert [text.get_text() for text in left.figure.legends[0].get_texts()][2:] == [
        "empirical risk",
        "population risk",
    ]
    assert "Figure 5" in left.get_title()
    assert not plot_pairs(curves(1)[0]).axes[0].collections  # One run has no band.
    with pytest.raises(FrameError, match="loss"):
        plot_pairs(pairs, risks.drop(columns="loss"))
    with pytest.raises(FrameError, match="pair"):
        plot_pairs(pairs.drop(columns="pair"))
