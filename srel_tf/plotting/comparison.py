"""Curves of several origins in the same panels, for example our results and published results."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srel_tf.errors import FrameError
from srel_tf.frames.schema import check_columns
from srel_tf.plotting.style import (
    Colour,
    is_wide,
    legend_below,
    mean_and_band,
    measure_name,
    new_figure,
)

_LINE_STYLES = ("-", "--", ":")


def plot_beside(curves: pd.DataFrame, measure: str) -> Figure:
    """Plot S^{k,smooth} over optimizer updates: one panel per (source class, target class), one colour per origin.

    Lines are means over runs. Bands reach from the lowest run to the highest run. If the highest mean is more than
    `WIDE` times the lowest mean, the axes are logarithmic.

    Args:
        curves: Columns origin (the text of the legend), run, step, measure, source_class, target_class, mean.
        measure: Measure to draw.

    Returns:
        The figure.

    Raises:
        FrameError: If the frame lacks the measure.

    Example:
        >>> import pandas as pd
        >>> from srel_tf.plotting import plot_beside
        >>> curves = pd.DataFrame({"origin": ["ours", "ours", "published", "published"], "step": [0, 9, 0, 9]})
        >>> curves = curves.assign(mean=[1.0, 0.5, 1.0, 0.6], run="a", measure="kl")
        >>> figure = plot_beside(curves.assign(source_class="cat", target_class="cat"), "kl")
        >>> [line.get_label() for line in figure.axes[0].lines]
        ['ours', 'published']
    """
    check_columns(
        curves,
        ["origin", "run", "step", "measure", "source_class", "target_class", "mean"],
    )
    rows = curves[curves["measure"] == measure]
    if rows.empty:
        raise FrameError(
            f"no curve of measure {measure!r}: choose from {list(curves['measure'].unique())}"
        )
    classes = list(rows["source_class"].unique())
    colours = dict(
        zip(rows["origin"].unique(), sns.color_palette("colorblind"), strict=False)
    )
    of_curve = rows.groupby(["source_class", "target_class", "origin", "step"])["mean"]
    over_runs = of_curve.agg(["mean", "min", "max"])
    wide = is_wide(over_runs["mean"].min(), over_runs["mean"].max())

    figure, grid = new_figure(
        len(classes),
        len(classes),
        width=2.9,
        height=2.3,
        sharex=True,
        sharey="row",
    )
    for axes, source in zip(grid, classes, strict=True):
        for ax, target in zip(axes, classes, strict=True):
            _panel(ax, over_runs.xs((source, target)), colours)
            ax.set_title(f"{source} → {target}", fontsize="small")
        axes[0].set(ylabel="mean $S_{rel}$", yscale="log" if wide else "linear")
    for ax in grid[-1]:
        ax.set_xlabel("optimizer updates")
    figure.suptitle(
        f"{measure_name(measure)}: source x → target x', mean and range of the runs"
    )
    legend_below(figure, *grid[0, 0].get_legend_handles_labels())
    return figure


def _panel(
    ax: Axes,
    over_runs: pd.DataFrame,
    colours: dict[str, Colour],
) -> None:
    """Draw the curves of one class pair.

    Args:
        ax: The panel.
        over_runs: Columns mean, min, max, indexed by (origin, step).
        colours: {origin: colour}.
    """
    for (origin, colour), style in zip(colours.items(), _LINE_STYLES, strict=False):
        curve = over_runs.loc[origin]
        steps = np.asarray(curve.index)
        mean_and_band(
            ax,
            steps,
            mean=curve["mean"],
            low=curve["min"],
            high=curve["max"],
            colour=colour,
            alpha=0.25,
            ls=style,
            label=origin,
        )
