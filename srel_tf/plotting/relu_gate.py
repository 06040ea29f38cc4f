"""Figure 10 of the paper, about the ReLU gate. This module does not import TensorFlow."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srel_tf.plotting.style import PALETTE, check_rows, new_figure


def plot_relu_gate(frame: pd.DataFrame) -> Figure:
    """Plot Figure 10: S_rel and ‖w − w*‖ along mini-batch SGD on the ℓ2 risk of a ReLU gate.

    For comparison, the same two quantities along the gradient flow are drawn.

    Args:
        frame: Columns pair, bound (Theorem 4.3), step (>= 1), run, srel_sgd, resolved, srel_flow, distance_sgd,
            distance_flow.

    Returns:
        The figure.

    Raises:
        FrameError: If the frame lacks columns, or has no rows.

    Example:
        >>> import pandas as pd
        >>> from srel_tf.plotting.relu_gate import plot_relu_gate
        >>> frame = pd.DataFrame({"pair": "a", "bound": 1.1, "step": [1, 2], "run": 0, "resolved": True})
        >>> frame = frame.assign(srel_sgd=1.2, srel_flow=1.2, distance_sgd=[1.0, 0.9], distance_flow=[1.0, 0.9])
        >>> len(plot_relu_gate(frame).axes)
        2
    """
    check_rows(
        frame,
        *("pair", "bound", "step", "run"),
        *("srel_sgd", "resolved", "srel_flow", "distance_sgd", "distance_flow"),
    )
    pairs = list(frame["pair"].unique())
    figure, grid = new_figure(1, len(pairs) + 1, width=4.8, height=4.2)
    *pair_panels, distance_panel = grid[0]
    for pair, ax in zip(pairs, pair_panels, strict=True):
        _srel_of_the_gate(ax, frame[frame["pair"] == pair])
        ax.set(
            xlabel="iteration of SGD, η = 0.01",
            ylabel="$S_{rel}(x', x)$",
            ylim=(0.9, 1.9),
            title=pair,
        )
        ax.legend(fontsize="small", loc="upper left")
    _distance_of_the_gate(distance_panel, frame[frame["pair"] == pairs[0]])
    figure.suptitle(
        "Figure 10: a ReLU gate in 10 dimensions, w* = (1, …, 1), x = (10, …, 10)"
    )
    return figure


def _distance_of_the_gate(ax: Axes, frame: pd.DataFrame) -> None:
    """Draw the geometric mean over runs of ‖w − w*‖, from the rows of one pair."""
    curves = {
        "SGD": ("distance_sgd", PALETTE[0], "-"),
        "flow at t = iteration × η": ("distance_flow", PALETTE[1], "--"),
    }
    for label, (column, colour, style) in curves.items():
        logs = np.log(frame[column].replace(0, np.nan))
        mean = np.exp(logs.groupby(frame["step"]).mean())
        ax.plot(
            mean.index,
            mean,
            color=colour,
            ls=style,
            lw=2,
            label=label,
        )
    ax.set(
        xlabel="iteration of SGD, η = 0.01",
        ylabel="$\\|w_t - w_*\\|$, geometric mean over runs",
        yscale="log",
    )
    ax.legend(fontsize="small")


def _srel_of_the_gate(ax: Axes, frame: pd.DataFrame) -> None:
    """Draw S_rel along SGD and along the flow, from the rows of one pair."""
    usable = frame[np.isfinite(frame["srel_sgd"])]
    resolved = usable[usable["resolved"]]
    unresolved = usable[~usable["resolved"]]
    ax.scatter(
        unresolved["step"],
        unresolved["srel_sgd"],
        s=3,
        color=PALETTE[7],
        label="SGD, single runs, below rounding",
    )
    mean = resolved.groupby("step")["srel_sgd"].mean()
    ax.plot(
        mean.index,
        mean,
        color=PALETTE[0],
        lw=2,
        label="SGD, mean over resolved runs",
    )
    flow = frame.groupby("step")["srel_flow"].mean()
    ax.plot(
        flow.index,
        flow,
        color=PALETTE[1],
        ls="--",
        lw=2,
        label="flow (eqs. 19, 20), mean over runs",
    )
    bound = frame["bound"].iloc[0]
    ax.axhline(
        bound,
        color="black",
        lw=0.8,
        ls=":",
        label=f"bound of Theorem 4.3: {bound:.2f}",
    )
