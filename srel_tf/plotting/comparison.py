"""Curves of two sources, ours and published ones, side by side."""

import seaborn as sns

from srel_tf.errors import FrameError
from srel_tf.frames.schema import check_columns
from srel_tf.plotting.style import MEASURE_NAMES, WIDE, new_figure


def plot_beside(curves, measure):
    """S^{k,smooth} by optimizer updates, a panel a (source class, target class), a colour an origin.

    curves: columns origin (as in the legend), run, step, measure, source_class, target_class, mean. Lines are means
    over runs, bands from the lowest run to the highest. Where means span more than a factor of `WIDE`, axes are
    logarithmic. Raises `FrameError` where the measure is not there.
    """
    check_columns(curves, ["origin", "run", "step", "measure", "source_class", "target_class", "mean"])
    rows = curves[curves["measure"] == measure]
    if rows.empty:
        raise FrameError(f"no curve of measure {measure!r}: choose from {list(curves['measure'].unique())}")
    classes, origins = list(rows["source_class"].unique()), list(rows["origin"].unique())
    figure, grid = new_figure(len(classes), len(classes), width=2.9, height=2.3, sharex=True, sharey="row")
    colours = dict(zip(origins, sns.color_palette("colorblind"), strict=False))
    over_runs = rows.groupby(["source_class", "target_class", "origin", "step"])["mean"].agg(["mean", "min", "max"])
    wide = over_runs["mean"].max() > WIDE * over_runs["mean"].min() > 0
    for axes, source in zip(grid, classes, strict=True):
        for ax, target in zip(axes, classes, strict=True):
            for (origin, colour), style in zip(colours.items(), ("-", "--", ":"), strict=False):
                curve = over_runs.loc[source, target, origin]
                ax.plot(curve.index, curve["mean"], style, color=colour, label=origin)
                ax.fill_between(curve.index, curve["min"], curve["max"], color=colour, alpha=0.25, lw=0)
            ax.set_title(f"{source} → {target}", fontsize="small")
        axes[0].set(ylabel="mean $S_{rel}$", yscale="log" if wide else "linear")
    for ax in grid[-1]:
        ax.set_xlabel("optimizer updates")
    figure.suptitle(f"{MEASURE_NAMES.get(measure, measure)}: source x → target x', mean and range of the runs")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")
    return figure
