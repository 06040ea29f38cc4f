"""Separation of classes by S_rel during training, and the distribution of S_rel over pairs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from srel_tf.errors import FrameError
from srel_tf.frames.schema import check_columns
from srel_tf.plotting.style import (
    legend_below,
    mean_and_band,
    measure_name,
    measure_palette,
    new_figure,
    population_deviation,
)

COLUMNS = 3

_QUANTILES = ["q0.05", "q0.5", "q0.95", "mean"]


def plot_separation(
    separation: pd.DataFrame,
    measures: Sequence[str] = ("kl", "l1", "raw_l1", "published_kl"),
) -> Figure:
    """Plot the AUC of intra- against inter-class pairs over the epochs.

    There is one panel per update rule and one line per measure.

    Lines are means over runs. Bands are ± one population standard deviation over runs.

    Args:
        separation: Result of `srel_tf.separation`, with a column `rule` (`srel_tf.rule_names`).
        measures: Measures to draw. Measures that the frame lacks are left out.

    Returns:
        The figure.

    Raises:
        FrameError: If the frame has none of the measures.

    Example:
        >>> import pandas as pd
        >>> from srel_tf.plotting import plot_separation
        >>> separation = pd.DataFrame({"run": "a", "epoch": [0, 1], "measure": "kl", "rule": "sgd", "auc": [0.6, 0.9]})
        >>> plot_separation(separation).axes[0].get_title()
        'sgd'
    """
    check_columns(separation, ["run", "epoch", "measure", "rule", "auc"])
    present = set(separation["measure"])
    shown = [measure for measure in measures if measure in present]
    if not shown:
        raise FrameError(
            f"the frame has none of the measures {list(measures)}: choose from {separation['measure'].unique()}"
        )
    chosen = separation[separation["measure"].isin(shown)].astype({"epoch": float})
    chosen = chosen.assign(measure=chosen["measure"].map(measure_name))
    names = [measure_name(measure) for measure in shown]

    rules = list(separation["rule"].unique())
    columns = min(COLUMNS, len(rules))
    rows = -(-len(rules) // columns)
    figure, grid = new_figure(
        rows,
        columns,
        width=3.6,
        height=2.8,
        sharex=True,
        sharey=True,
    )
    panels = list(grid.flat)
    for ax, rule in zip(panels, rules, strict=False):
        _auc_panel(ax, chosen[chosen["rule"] == rule], names, legend=ax is panels[0])
        ax.set(title=rule)
    for ax in panels[len(rules) :]:
        ax.remove()
    handles, labels = panels[0].get_legend_handles_labels()
    panels[0].get_legend().remove()
    legend_below(figure, handles, labels)
    return figure


def _auc_panel(
    ax: Axes,
    part: pd.DataFrame,
    names: list[str],
    legend: bool,
) -> None:
    """Draw the panel of one update rule.

    Args:
        ax: The panel.
        part: Rows of the rule. The column `measure` holds the names of measures for the legend.
        names: Names of all measures, in the order of the legend.
        legend: Whether to draw a legend.
    """
    colours = {
        measure_name(measure): colour for measure, colour in measure_palette().items()
    }
    has_runs = part["run"].nunique() > 1
    sns.lineplot(
        part,
        x="epoch",
        y="auc",
        hue="measure",
        style="measure",
        hue_order=names,
        style_order=names,
        palette={name: colours[name] for name in names},
        errorbar=population_deviation if has_runs else None,
        legend=legend,
        ax=ax,
    )
    ax.axhline(0.5, color="0.4", lw=0.8, ls=":")
    ax.set(
        xlabel="epochs",
        ylabel="AUC, intra above inter",
        ylim=(0, 1),
    )


def plot_spread(quantiles: pd.DataFrame) -> Figure:
    """Plot the distribution of S_rel over intra- and inter-class pairs over the epochs.

    There is one row per update rule and one column per measure. Solid lines are medians, dashed lines are means, and
    bands reach from the 5% quantile to the 95% quantile. All of them are averaged over runs. The axis is logarithmic.

    Args:
        quantiles: Columns run, epoch, measure, rule, kind ("intra" or "inter"), q0.05, q0.5, q0.95, mean.

    Returns:
        The figure.

    Raises:
        FrameError: If the frame lacks a column.

    Example:
        >>> import pandas as pd
        >>> from srel_tf.plotting import plot_spread
        >>> quantiles = pd.DataFrame({"run": "a", "epoch": [0, 1], "measure": "kl", "rule": "sgd", "kind": "intra"})
        >>> figure = plot_spread(quantiles.assign(**{"q0.05": 0.1, "q0.5": 0.8, "q0.95": 2.0, "mean": 0.9}))
        >>> [line.get_label() for line in figure.axes[0].lines]
        ['intra, median', 'intra, mean']
    """
    check_columns(quantiles, ["run", "epoch", "measure", "rule", "kind", *_QUANTILES])
    measures = list(quantiles["measure"].unique())
    rules = list(quantiles["rule"].unique())
    over_runs = quantiles.groupby(["rule", "measure", "kind", "epoch"])[
        _QUANTILES
    ].mean()
    figure, grid = new_figure(
        len(rules),
        len(measures),
        width=3.8,
        height=2.8,
        sharex=True,
        sharey="col",
    )
    for row, rule in zip(grid, rules, strict=True):
        for ax, measure in zip(row, measures, strict=True):
            _spread_panel(ax, over_runs, rule, measure)
        row[0].set_ylabel("$S_{rel}$, bands 5–95% of pairs")
    legend_below(figure, *grid[0, 0].get_legend_handles_labels())
    return figure


def _spread_panel(
    ax: Axes,
    over_runs: pd.DataFrame,
    rule: str,
    measure: str,
) -> None:
    """Draw the panel of one update rule and one measure.

    Args:
        ax: The panel.
        over_runs: Quantiles and mean, indexed by (rule, measure, kind, epoch).
        rule: The rule.
        measure: The measure.
    """
    present = over_runs.index.droplevel("epoch")
    for kind, colour in zip(
        ("intra", "inter"), sns.color_palette("colorblind"), strict=False
    ):
        if (rule, measure, kind) not in present:
            continue
        curve = over_runs.xs((rule, measure, kind))
        epochs = np.asarray(curve.index)
        mean_and_band(
            ax,
            epochs,
            mean=curve["q0.5"],
            low=curve["q0.05"],
            high=curve["q0.95"],
            colour=colour,
            label=f"{kind}, median",
        )
        label = f"{kind}, mean"
        ax.plot(epochs, curve["mean"], color=colour, ls="--", lw=1, label=label)
    ax.set(
        yscale="log",
        title=f"{measure_name(measure)}\n{rule}",
        xlabel="epochs",
    )
    ax.yaxis.set_major_formatter("{x:g}")
    # Minor ticks are labelled, too, if the axis spans less than two decades.
    ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
