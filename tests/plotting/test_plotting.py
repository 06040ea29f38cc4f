"""The content of figures, read from their artists: panels, labels, means over runs, bands, blank entries, colours."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from srel_tf import FrameError, smooth
from srel_tf.plotting import plot_class_pairs, plot_history, plot_matrix
from tests.made_up import probe, result

CLASSES = ["cat", "dog", "owl"]


def pairs_of(runs=("a", "b", "c"), steps=(0, 4, 8), **kwargs):
    frames = [
        result(probe(2, 3), step, seed=i, **kwargs).to_frame(run, i, step / 8)
        for i, run in enumerate(runs)
        for step in steps
    ]
    return smooth(pd.concat(frames, ignore_index=True))


def lines_of(ax):
    """Return {target class: (epochs, values, colour)} for the lines in the legend of a panel."""
    legend = ax.get_legend()
    colours = {
        text.get_text(): to_rgb(handle.get_color())
        for text, handle in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    drawn = {
        to_rgb(line.get_color()): line
        for line in ax.get_lines()
        if len(line.get_xdata())
    }
    return {
        name: (*drawn[colour].get_data(), colour) for name, colour in colours.items()
    }


def band_of(ax, colour):
    """Return (epochs, low, high) of the band in this colour."""
    (band,) = [
        c for c in ax.collections if np.allclose(c.get_facecolor()[0, :3], colour)
    ]
    vertices = band.get_paths()[0].vertices
    epochs = np.unique(vertices[:, 0])
    edges = [vertices[vertices[:, 0] == epoch, 1] for epoch in epochs]
    return epochs, [e.min() for e in edges], [e.max() for e in edges]


def test_class_pairs_panels_and_labels():
    figure = plot_class_pairs(pairs_of())
    assert [ax.get_title() for ax in figure.axes] == [
        f"{measure}, source: {source}"
        for source in CLASSES
        for measure in ("KL (Definition 2)", "ℓ1 (Definition 1)")
    ]
    assert [ax.get_xlabel() for ax in figure.axes] == [
        "",
        "",
        "",
        "",
        "epochs",
        "epochs",
    ]
    assert all("S_{rel}" in ax.get_ylabel() for ax in figure.axes)


def test_class_pairs_lines_are_means_and_bands_population_deviations():
    pairs = pairs_of()
    of = pairs.set_index(["source_class", "target_class", "measure", "run"])[
        "mean"
    ].sort_index()
    figure = plot_class_pairs(pairs)
    for row, source in enumerate(CLASSES):
        for column, measure in enumerate(("kl", "l1")):
            ax = figure.axes[2 * row + column]
            lines = lines_of(ax)
            assert list(lines) == CLASSES
            for target, (epochs, values, colour) in lines.items():
                runs = np.array(
                    [of.loc[source, target, measure, run] for run in "abc"]
                )  # Shape [runs, steps].
                np.testing.assert_allclose(epochs, [0, 0.5, 1])
                np.testing.assert_allclose(values, runs.mean(axis=0))
                band_epochs, low, high = band_of(ax, colour)
                np.testing.assert_allclose(band_epochs, [0, 0.5, 1])
                np.testing.assert_allclose(low, runs.mean(axis=0) - runs.std(axis=0))
                np.testing.assert_allclose(high, runs.mean(axis=0) + runs.std(axis=0))


def test_class_pairs_of_one_run_have_no_band():
    figure = plot_class_pairs(pairs_of(runs=["a"]))
    assert not any(ax.collections for ax in figure.axes)


def test_a_class_keeps_its_colour_and_its_own_line_is_solid():
    pairs = pairs_of().query(
        "source_class != 'cat' or target_class != 'dog'"
    )  # Not every panel shows every class.
    figure = plot_class_pairs(pairs)
    drawn = [
        {name: line[2] for name, line in lines_of(ax).items()} for ax in figure.axes
    ]
    colours = {
        name: {panel[name] for panel in drawn if name in panel} for name in CLASSES
    }
    assert all(len(of_class) == 1 for of_class in colours.values())
    assert len(set.union(*colours.values())) == 3
    for ax in figure.axes:
        source = ax.get_title().split("source: ")[1]
        legend = ax.get_legend()
        pairs = zip(legend.get_texts(), legend.get_lines(), strict=True)
        assert [
            text.get_text() for text, line in pairs if line.get_linestyle() == "-"
        ] == [source]


def test_class_pairs_of_chosen_sources_show_all_targets():
    figure = plot_class_pairs(pairs_of(measures=["l1"]), classes=["owl", "cat"])
    assert [ax.get_title().split("source: ")[1] for ax in figure.axes] == ["owl", "cat"]
    assert all(set(lines_of(ax)) == set(CLASSES) for ax in figure.axes)


def test_class_pairs_axes_hold_every_curve_and_band():
    """The rows of a column share the y-axis. Here the last row, which is drawn last, has the highest values."""
    pairs = pairs_of()
    factor = pairs["source_class"].map({"cat": 1, "dog": 2, "owl": 5})
    for ax in plot_class_pairs(pairs.assign(mean=pairs["mean"] * factor)).axes:
        low, high = ax.get_ylim()
        assert low == 0
        for _, values, colour in lines_of(ax).values():
            assert max(values) < high
            assert max(band_of(ax, colour)[2]) < high


def test_class_pairs_are_said_to_be_of_the_rule_that_the_frame_names():
    pairs = pairs_of()
    assert "sgd;" in plot_class_pairs(pairs).get_suptitle()
    named = plot_class_pairs(pairs.assign(rule="limit")).get_suptitle()
    assert "Fictitious step: limit; mean over 3 runs" in named


def test_class_pairs_far_from_zero_do_not_waste_the_axis_on_it():
    pairs = pairs_of()
    for ax in plot_class_pairs(pairs.assign(mean=1 + pairs["mean"] / 100)).axes:
        lowest = min(
            min(band_of(ax, colour)[1]) for _, _, colour in lines_of(ax).values()
        )
        assert 0.99 < ax.get_ylim()[0] < lowest


def test_class_pairs_that_span_decades_have_a_logarithmic_axis_and_the_range_of_runs():
    pairs = pairs_of().assign(mean=lambda p: p["mean"] * 10.0 ** (3 * p["epoch"]))
    pairs.loc[pairs["run"] == "a", "mean"] *= 1e-2  # Makes mean − s.d. negative.
    of = pairs.set_index(["source_class", "target_class", "measure", "run"])[
        "mean"
    ].sort_index()
    figure = plot_class_pairs(pairs)
    for ax, (source, measure) in zip(
        figure.axes, [(s, m) for s in CLASSES for m in ("kl", "l1")], strict=True
    ):
        assert ax.get_yscale() == "log"
        for target, (_, values, colour) in lines_of(ax).items():
            runs = np.array([of.loc[source, target, measure, run] for run in "abc"])
            _, low, high = band_of(ax, colour)
            np.testing.assert_allclose(values, runs.mean(axis=0))
            np.testing.assert_allclose(low, runs.min(axis=0))
            np.testing.assert_allclose(high, runs.max(axis=0))
    assert "lowest run to the highest" in figure.get_suptitle()


def test_class_pairs_that_cannot_be_drawn():
    pairs = pairs_of()
    for wrong, message in (
        (pairs.drop(columns="mean"), r"lacks the columns \['mean'\]"),
        (pairs.iloc[:0], r"one update rule to draw, got \[\]"),
        (
            pd.concat([pairs, pairs.assign(update="optimizer")]),
            r"\['sgd', 'optimizer'\]",
        ),
        (pd.concat([pairs, pairs.assign(name="b")]), r"\['sgd', 'sgd b'\]"),
        (
            pd.concat([pairs, pairs.assign(learning_rate=0.5)]),
            r"one η at each step, got \[.*0\.5\]",
        ),
    ):
        with pytest.raises(FrameError, match=message):
            plot_class_pairs(wrong)
    with pytest.raises(FrameError, match="fox"):
        plot_class_pairs(pairs, classes=["cat", "fox"])


def test_history():
    rng = np.random.default_rng(0)
    rows = [
        (run, epoch, split, *rng.random(2))
        for run in "abc"
        for epoch in (1, 2)
        for split in ("train", "test")
    ]
    history = pd.DataFrame(rows, columns=["run", "epoch", "split", "loss", "accuracy"])
    loss, accuracy = plot_history(history).axes
    assert [loss.get_xlabel(), loss.get_ylabel()] == ["epochs", "loss (nats)"]
    assert [accuracy.get_xlabel(), accuracy.get_ylabel()] == ["epochs", "accuracy"]
    for ax, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        for split, (epochs, values, colour) in lines_of(ax).items():
            by_epoch = history[history["split"] == split].groupby("epoch")[quantity]
            mean, deviation = by_epoch.mean(), by_epoch.std(ddof=0)
            np.testing.assert_array_equal(epochs, [1, 2])
            np.testing.assert_allclose(values, mean)
            _, low, high = band_of(ax, colour)
            np.testing.assert_allclose(low, mean - deviation)
            np.testing.assert_allclose(high, mean + deviation)
    with pytest.raises(FrameError, match="accuracy"):
        plot_history(history.drop(columns="accuracy"))


def test_matrix_shows_each_entry_where_it_belongs_and_invalid_ones_blank():
    made = result(probe(2, 3, sources=[4, 0, 1], targets=[3, 0, 4, 5]), invalid=0.3)
    ax = plot_matrix(made.to_frame(), "kl").axes[0]
    (mesh,) = ax.collections
    drawn = mesh.get_array().reshape(3, 4)  # Rows from top to bottom, as in the matrix.
    np.testing.assert_array_equal(np.ma.getmaskarray(drawn), ~made.valid("kl"))
    np.testing.assert_array_equal(
        drawn.data[made.valid("kl")], made.matrix("kl")[made.valid("kl")]
    )
    assert ax.yaxis_inverted()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["owl", "cat"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["dog", "cat", "owl"]
    np.testing.assert_allclose(
        ax.get_xticks(), [0.5, 1.5, 3.0]
    )  # The middle of each class.
    assert ax.get_title() == "KL (Definition 2), step 0 (blank: not valid, or 0)"
    assert "source" in ax.get_ylabel()
    assert "target" in ax.get_xlabel()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "values", [[[1, np.nan], [np.nan, 1]], [[0, 0], [0, 0]], np.full((2, 2), np.nan)]
)
def test_matrix_of_almost_nothing(tmp_path, values):
    """With a single value, or with none, the entries do not define a range of colours."""
    frame = result(probe(1, 2), measures=["l1"]).to_frame()
    figure = plot_matrix(frame.assign(srel=np.ravel(values).astype(float)), "l1")
    figure.savefig(tmp_path / "matrix.png")
    blank = np.ma.getmaskarray(figure.axes[0].collections[0].get_array()).reshape(2, 2)
    np.testing.assert_array_equal(blank, ~(np.array(values) > 0))


def test_matrix_of_several_measurements_or_none():
    frame = result(probe()).to_frame()
    with pytest.raises(FrameError, match="'l2', got 0 rows"):
        plot_matrix(frame, "l2")
    with pytest.raises(FrameError, match="one matrix of measure 'kl', got 32 rows"):
        plot_matrix(pd.concat([frame, frame.assign(step=9)]), "kl")
    with pytest.raises(FrameError, match="srel"):
        plot_matrix(frame.drop(columns="srel"), "kl")


@pytest.mark.slow  # tests/test_imports.py checks the same on the source code.
def test_importing_srel_tf_loads_no_plotting_library():
    """The import works without matplotlib and seaborn. (Keras itself loads matplotlib if it is installed.)"""
    code = "import sys; sys.modules['matplotlib'] = sys.modules['seaborn'] = None; import srel_tf"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
