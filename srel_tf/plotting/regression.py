"""S_rel in regression, as in Figures 3, 4 and 5 of the paper."""

from typing import Any, cast

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from srel_tf.errors import FrameError
from srel_tf.frames.schema import check_columns
from srel_tf.plotting.style import (
    PALETTE,
    Colour,
    class_palette,
    legend_below,
    mean_and_band,
    new_figure,
)

_LINE_STYLES = ("-", "--", ":")


def plot_distances(frame: pd.DataFrame, distances: pd.DataFrame) -> Figure:
    """Plot Figure 3: S_rel(t, x', x_i) over the distance between x' and x_i.

    There is one row per metric, one column per step, and one colour per run.

    Args:
        frame: S_rel frame of one target x' and one measure.
        distances: Columns run, step, target_id, source_id, distance, metric, as for `srel_tf.hypotheses`.

    Returns:
        The figure.

    Raises:
        FrameError: If no valid row of `frame` has a distance, or if `frame` holds several targets or measures.

    Example:
        >>> import pandas as pd
        >>> from srel_tf.plotting import plot_distances
        >>> pairs = pd.DataFrame({"run": "a", "step": 0, "source_id": [1, 2], "target_id": 0})
        >>> frame = pairs.assign(measure="l2", srel=[0.9, 0.4], valid=True)
        >>> figure = plot_distances(frame, pairs.assign(distance=[1.0, 2.0], metric="input"))
        >>> len(figure.axes)
        1
    """
    check_columns(
        frame, ["run", "step", "measure", "source_id", "target_id", "srel", "valid"]
    )
    check_columns(
        distances, ["run", "step", "source_id", "target_id", "distance", "metric"]
    )
    if frame["target_id"].nunique() != 1 or frame["measure"].nunique() != 1:
        raise FrameError(
            "expected rows of one target x' and one measure: select these rows"
        )
    keys = ["run", "step", "source_id", "target_id"]
    joined = frame[frame["valid"]].merge(distances, on=keys)
    if joined.empty:
        raise FrameError(
            "no row of the frame has a distance: give distances with the same run, step, source_id and target_id"
        )

    metrics = joined["metric"].unique()
    steps = sorted(joined["step"].unique())
    colours = class_palette(joined["run"].unique())
    figure, axes = new_figure(
        len(metrics),
        len(steps),
        width=2.2,
        height=2.4,
        sharey=True,
        sharex="row",
    )
    for row, metric in zip(axes, metrics, strict=True):
        of_metric = joined[joined["metric"] == metric]
        for ax, step in zip(row, steps, strict=True):
            _scatter(ax, of_metric[of_metric["step"] == step], colours)
            ax.set(title=f"$t$ = {step}", xlabel=f"$\\|x' - x_i\\|$, {metric}")
        row[0].set_ylabel("$S_{rel}(t, x', x_i)$")
    markers = [_marker(colour) for colour in colours.values()]
    legend_below(figure, markers, list(colours))
    figure.suptitle("Figure 3: $S_{rel}$ against distance at a fixed $x'$")
    return figure


def _scatter(
    ax: Axes,
    joined: pd.DataFrame,
    colours: dict[str, Colour],
) -> None:
    """Draw S_rel over distance, with one colour per run."""
    for run, part in joined.groupby("run"):
        ax.scatter(
            part["distance"],
            part["srel"],
            s=3,
            color=colours[cast(str, run)],
            lw=0,
        )


def _marker(colour: Colour) -> Line2D:
    """Make the marker of a legend entry."""
    return Line2D([], [], color=colour, marker="o", ls="", ms=4)


def plot_pairs(pairs: pd.DataFrame, risks: pd.DataFrame | None = None) -> Figure:
    """Plot S_rel of pairs (x, x') over time (Figure 4). With `risks`, add the risks (Figure 5).

    Lines are means over runs. Figure 4 also has bands of ± one population standard deviation over runs. Risks have a
    logarithmic axis of their own on the right.

    Args:
        pairs: Columns pair (a label), run, step, srel, valid.
        risks: Columns run, step, split, loss; None draws Figure 4.

    Returns:
        The figure.

    Raises:
        FrameError: If a frame lacks a column.

    Example:
        >>> import pandas as pd
        >>> from srel_tf.plotting import plot_pairs
        >>> pairs = pd.DataFrame({"pair": "near", "run": "a", "step": [0, 9], "srel": [0.5, 0.9], "valid": True})
        >>> plot_pairs(pairs).axes[0].get_title()
        "Figure 4: two pairs with the same x', mean over 1 runs ± 1 s.d."
    """
    check_columns(pairs, ["pair", "run", "step", "srel", "valid"])
    runs = pairs["run"].nunique()
    figure, grid = new_figure(1, 1, width=8, height=4.2)
    ax = grid[0, 0]
    _draw_pairs(ax, pairs, band=risks is None)
    handles, labels = ax.get_legend_handles_labels()
    title = f"Figure 4: two pairs with the same x', mean over {runs} runs ± 1 s.d."
    if risks is not None:
        right = ax.twinx()
        _draw_risks(right, risks)
        more_handles, more_labels = right.get_legend_handles_labels()
        handles = handles + more_handles
        labels = labels + more_labels
        title = f"Figure 5: the pairs of Figure 4 and the risks, means over {runs} runs"
    legend_below(figure, handles, labels)
    ax.set_title(title)
    return figure


def _draw_pairs(ax: Axes, pairs: pd.DataFrame, band: bool) -> None:
    """Draw one curve per pair. Invalid entries are left out."""
    shown = pairs.assign(srel=pairs["srel"].where(pairs["valid"]))
    for (pair, part), colour in zip(
        shown.groupby("pair", sort=False), PALETTE, strict=False
    ):
        _curve(
            ax,
            part,
            column="srel",
            colour=colour,
            label=f"$S_{{rel}}$, {pair}",
            band=band,
        )
    ax.set(
        xlabel="iteration t of SGD",
        ylabel="$S_{rel}(t, x', x)$",
        ylim=(0, None),
    )


def _draw_risks(ax: Axes, risks: pd.DataFrame) -> None:
    """Draw one black curve per kind of risk."""
    check_columns(risks, ["run", "step", "split", "loss"])
    for (split, part), style in zip(
        risks.groupby("split", sort=False), _LINE_STYLES, strict=False
    ):
        _curve(
            ax,
            part,
            column="loss",
            colour="black",
            label=f"{split} risk",
            style=style,
        )
    ax.set(yscale="log", ylabel="risk (mean squared error)")
    ax.grid(False)


def _curve(
    ax: Axes,
    part: pd.DataFrame,
    column: str,
    colour: Colour | str,
    label: str,
    style: str = "-",
    band: bool = False,
) -> None:
    """Draw the mean over runs of one curve, and a band of ± one population standard deviation.

    Args:
        ax: The panel.
        part: Columns run, step and `column`.
        column: Column to draw.
        colour: Colour of the curve.
        label: Label of the curve.
        style: Line style.
        band: Whether to draw the band. With only one run there is no band.
    """
    by_step = part.groupby("step")[column]
    mean = by_step.mean()
    line: dict[str, Any] = {"ls": style, "lw": 1, "label": label}
    if band and part["run"].nunique() > 1:
        deviation = by_step.std(ddof=0)
        low, high = mean - deviation, mean + deviation
        mean_and_band(ax, mean.index, mean, low, high, colour, **line)
    else:
        ax.plot(mean.index, mean, color=colour, **line)
