"""Figures 6–13 of the paper, about exactly solvable models. This module does not import TensorFlow."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srel_tf.plotting.relu_gate import plot_relu_gate
from srel_tf.plotting.style import (
    PALETTE,
    Colour,
    check_rows,
    mean_and_band,
    new_figure,
)

__all__ = [
    "plot_distance",
    "plot_flow_pairs",
    "plot_penalized",
    "plot_relu_gate",
    "plot_sgd_pairs",
]

RIDGES = {
    "paper": "Nλ₁/K before w (the text's M, T, h̃)",
    "loss": "λ₁/K before w (gradient of eq. 3)",
}

_LINE_STYLES = ("-", "--", "-.", ":")
_LABELS = {"loss": "empirical loss, eq. 3", "srel": "$S_{rel}$, eq. 4"}
_PUBLISHED_LABELS = {
    "loss": "loss as the script sums it",
    "srel": "$S_{rel}$ as the script computes it",
}


def plot_penalized(frame: pd.DataFrame) -> Figure:
    """Plot one of Figures 6–9: the loss of eq. 3 (top) and S_rel of eq. 4 (bottom) over time.

    There is one column per convention for the ridge (`RIDGES`).

    Args:
        frame: Columns figure, variant, ridge, quantity ("loss" or "srel"), time, mean, low, high, pairs, width. Mean,
            low and high are the mean and the 10% and 90% quantiles over the initial W.

    Returns:
        The figure.

    Raises:
        FrameError: If the frame lacks columns, or has no rows.

    Example:
        >>> import pandas as pd
        >>> from srel_tf.plotting.theory import plot_penalized
        >>> frame = pd.DataFrame({"quantity": ["loss", "loss", "srel", "srel"], "time": [1.0, 10.0, 1.0, 10.0]})
        >>> frame = frame.assign(figure=6, variant="text", ridge="paper", mean=1.0, low=0.9, high=1.1)
        >>> len(plot_penalized(frame.assign(pairs="inter", width=1000)).axes)
        2
    """
    columns = ("figure", "variant", "ridge", "pairs", "width")
    check_rows(frame, *columns, "quantity", "time", "mean", "low", "high")
    is_published = frame["variant"].iloc[0] == "published"
    labels = _PUBLISHED_LABELS if is_published else _LABELS
    ridges = list(frame["ridge"].unique())
    shown = frame[frame["time"] > 0]  # The time axis is logarithmic.
    figure, grid = new_figure(2, len(ridges), width=4.6, sharex=True)
    for (quantity, label), row, colour in zip(
        labels.items(), grid, PALETTE, strict=False
    ):
        of_quantity = shown[shown["quantity"] == quantity]
        for ridge, ax in zip(ridges, row, strict=True):
            part = of_quantity[of_quantity["ridge"] == ridge]
            _penalized_panel(ax, part, colour)
            ax.set(xscale="log", ylabel=label)
            if quantity == "loss":
                ax.set(yscale="log", title=RIDGES.get(ridge, ridge))
            else:
                ax.ticklabel_format(axis="y", useOffset=False)
            ax.legend(fontsize="small")
    for ax in grid[-1]:
        ax.set_xlabel("time t (flow at speed θ², θ = 0.001)")

    first = frame.iloc[0]
    width = f"p = {first['width']}"
    setting = f"{first['pairs']}-class pairs, {width}, dim = 100"
    if is_published:
        setting = f"as the published script computes it, {width}"
    figure.suptitle(f"Figure {first['figure']}: {setting}")
    return figure


def _penalized_panel(ax: Axes, part: pd.DataFrame, colour: Colour) -> None:
    """Draw one quantity for one ridge convention."""
    mean_and_band(
        ax,
        part["time"],
        mean=part["mean"],
        low=part["low"],
        high=part["high"],
        colour=colour,
        label="mean and 10–90% over initial W",
    )


def plot_distance(frame: pd.DataFrame) -> Figure:
    """Plot Figure 11: S_rel of eq. 14 over the distance ‖x' − x‖, at several times.

    Args:
        frame: Columns time, distance, srel.

    Returns:
        The figure.

    Raises:
        FrameError: If the frame lacks columns, or has no rows.

    Example:
        >>> import pandas as pd
        >>> from srel_tf.plotting.theory import plot_distance
        >>> figure = plot_distance(pd.DataFrame({"time": 10.0, "distance": [0.0, 1.0], "srel": [1.0, 0.8]}))
        >>> [line.get_label() for line in figure.axes[0].lines]
        ['t = 10']
    """
    check_rows(frame, "time", "distance", "srel")
    figure, grid = new_figure(1, 1, width=6.5, height=4.2)
    ax = grid[0, 0]
    for (time, part), colour, style in zip(
        frame.groupby("time"), PALETTE, _LINE_STYLES, strict=False
    ):
        ax.plot(
            part["distance"],
            part["srel"],
            color=colour,
            ls=style,
            label=f"t = {time:g}",
        )
    ax.set(
        xlabel="distance ‖x' − x‖",
        ylabel="$S_{rel}(x', x)$, eq. 14",
    )
    ax.set_title("Figure 11: x' = (−1, −11, 1), x = x' + √z (1, 1, 1), θ = 0.001")
    ax.legend(title="time (flow at speed θ)")
    return figure


def plot_flow_pairs(frame: pd.DataFrame) -> Figure:
    """Plot Figure 12: S_rel of eq. 14 over time, one panel per pair.

    Args:
        frame: Columns pair, time, srel.

    Returns:
        The figure.

    Raises:
        FrameError: If the frame lacks columns, or has no rows.

    Example:
        >>> import pandas as pd
        >>> from srel_tf.plotting.theory import plot_flow_pairs
        >>> figure = plot_flow_pairs(pd.DataFrame({"pair": ["a", "b"], "time": 0.0, "srel": 1.0}))
        >>> [ax.get_title() for ax in figure.axes]
        ['a', 'b']
    """
    check_rows(frame, "pair", "time", "srel")
    pairs = list(frame["pair"].unique())
    figure, grid = new_figure(1, len(pairs), width=4.4, height=3.8)
    for pair, ax in zip(pairs, grid[0], strict=True):
        part = frame[frame["pair"] == pair]
        ax.plot(part["time"], part["srel"], color=PALETTE[0])
        ax.set(
            xlabel="time t (flow at speed θ = 0.001)",
            ylabel="$S_{rel}(x', x)$, eq. 14",
        )
        ax.set_title(pair, fontsize="medium")
    figure.suptitle("Figure 12 (the paper's pairs are lost; these are ours)")
    return figure


def plot_sgd_pairs(frame: pd.DataFrame) -> Figure:
    """Plot Figure 13: S_rel along SGD on eq. 15, and for comparison S_rel along the gradient flow.

    There is one panel per pair.

    Args:
        frame: Columns pair, step, mean, sd, limit, finite, runs. Mean and sd are taken over the runs of SGD. Limit
            and finite are S_rel along the flow: limit is computed by eq. 13, and finite by eqs. 26 and 28.

    Returns:
        The figure.

    Raises:
        FrameError: If the frame lacks columns, or has no rows.

    Example:
        >>> import pandas as pd
        >>> from srel_tf.plotting.theory import plot_sgd_pairs
        >>> frame = pd.DataFrame({"pair": "a", "step": [0, 1], "mean": [1.0, 1.1], "sd": 0.1, "runs": 5})
        >>> figure = plot_sgd_pairs(frame.assign(limit=[1.0, 1.1], finite=[1.0, 1.1]))
        >>> len(figure.axes[0].lines)
        3
    """
    check_rows(frame, "pair", "step", "mean", "sd", "limit", "finite", "runs")
    pairs = list(frame["pair"].unique())
    figure, grid = new_figure(1, len(pairs), width=4.4, height=4.0)
    for pair, ax in zip(pairs, grid[0], strict=True):
        _sgd_panel(ax, frame[frame["pair"] == pair])
        ax.set(
            xlabel="iteration of SGD, η = 0.001",
            ylabel="$S_{rel}(x', x)$",
        )
        ax.set_title(pair, fontsize="medium")
        ax.legend(fontsize="small")
    figure.suptitle("Figure 13: SGD on eq. 15 and the flow")
    return figure


def _sgd_panel(ax: Axes, part: pd.DataFrame) -> None:
    """Draw S_rel along SGD and the two closed forms along the flow, from the rows of one pair."""
    mean_and_band(
        ax,
        part["step"],
        mean=part["mean"],
        low=part["mean"] - part["sd"],
        high=part["mean"] + part["sd"],
        colour=PALETTE[0],
        label=f"SGD, mean over {part['runs'].iloc[0]} runs ± 1 s.d.",
    )
    ax.plot(
        part["step"],
        part["limit"],
        color=PALETTE[1],
        ls="--",
        label="flow, η → 0 (eq. 13)",
    )
    ax.plot(
        part["step"],
        part["finite"],
        color=PALETTE[2],
        ls=":",
        lw=2,
        label="flow, η = 0.001 (eqs. 26, 28)",
    )
