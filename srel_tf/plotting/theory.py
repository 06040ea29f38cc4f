"""Pictures of the exactly solvable models: Figures 6–13. Frames in, matplotlib figures out; no TensorFlow."""

import numpy as np
import seaborn as sns

from srel_tf.errors import FrameError
from srel_tf.frames.schema import check_columns
from srel_tf.plotting.style import new_figure

PALETTE = sns.color_palette("colorblind")
RIDGES = {
    "paper": "Nλ₁/K before w (the text's M, T, h̃)",
    "loss": "λ₁/K before w (gradient of eq. 3)",
}


def _check(frame, *columns):
    check_columns(frame, columns)
    if frame.empty:
        raise FrameError("The frame has no rows, so there is nothing to draw.")


def _band(axes, frame, x, low, high, color, label):
    """The mean over the starts or runs, and a band."""
    axes.plot(frame[x], frame["mean"], color=color, label=label)
    axes.fill_between(frame[x], low, high, color=color, alpha=0.2, lw=0)


def plot_penalized(frame):
    """Figures 6–9: eq. 3 (above) and S_rel of eq. 4 (below) over time, one column a convention for the ridge.

    Args:
        frame: columns figure, variant, ridge, quantity ("loss" or "srel"), time, mean, low, high (over the
            initial W), pairs, width.
    """
    _check(frame, "figure", "variant", "ridge", "quantity", "time", "mean", "low", "high", "pairs", "width")
    ridges = list(frame["ridge"].unique())
    figure, grid = new_figure(2, len(ridges), width=4.6, sharex=True)
    labels = {"loss": "empirical loss, eq. 3", "srel": "$S_{rel}$, eq. 4"}
    if frame["variant"].iloc[0] == "published":
        labels = {"loss": "loss as the script sums it", "srel": "$S_{rel}$ as the script computes it"}
    for (quantity, label), row, color in zip(labels.items(), grid, PALETTE, strict=False):
        for ridge, axes in zip(ridges, row, strict=True):
            part = frame[(frame["ridge"] == ridge) & (frame["quantity"] == quantity) & (frame["time"] > 0)]
            _band(axes, part, "time", part["low"], part["high"], color, "mean and 10–90% over initial W")
            axes.set(xscale="log", ylabel=label)
            if quantity == "loss":
                axes.set(yscale="log", title=RIDGES.get(ridge, ridge))
            else:
                axes.ticklabel_format(axis="y", useOffset=False)
            axes.legend(fontsize="small")
    for axes in grid[-1]:
        axes.set_xlabel("time t (flow at speed θ², θ = 0.001)")
    first = frame.iloc[0]
    pairs = f"{first['pairs']}-class pairs, p = {first['width']}, dim = 100"
    if first["variant"] == "published":
        pairs = f"as the published script computes it, p = {first['width']}"
    figure.suptitle(f"Figure {first['figure']}: {pairs}")
    return figure


def plot_relu_gate(frame):
    """Figure 10: S_rel along mini-batch SGD on the ℓ2 risk of a ReLU gate, beside the flow, and ‖w − w*‖.

    Args:
        frame: columns pair, bound (Theorem 4.3), step (>= 1), run, srel_sgd, resolved, srel_flow, distance_sgd,
            distance_flow.
    """
    columns = "pair", "bound", "step", "run", "srel_sgd", "resolved", "srel_flow", "distance_sgd", "distance_flow"
    _check(frame, *columns)
    pairs = list(frame["pair"].unique())
    figure, grid = new_figure(1, len(pairs) + 1, width=4.8, height=4.2)
    row = grid[0]
    for pair, axes in zip(pairs, row, strict=False):
        _srel_of_the_gate(axes, frame[frame["pair"] == pair])
        axes.set(xlabel="iteration of SGD, η = 0.01", ylabel="$S_{rel}(x', x)$", ylim=(0.9, 1.9), title=pair)
        axes.legend(fontsize="small", loc="upper left")
    once = frame[frame["pair"] == pairs[0]]
    for column, color, style, label in (
        ("distance_sgd", PALETTE[0], "-", "SGD"),
        ("distance_flow", PALETTE[1], "--", "flow at t = iteration × η"),
    ):
        curve = np.exp(np.log(once[column].replace(0, np.nan)).groupby(once["step"]).mean())
        row[-1].plot(curve.index, curve, color=color, ls=style, lw=2, label=label)
    row[-1].set(xlabel="iteration of SGD, η = 0.01", ylabel="$\\|w_t - w_*\\|$, geometric mean over runs", yscale="log")
    row[-1].legend(fontsize="small")
    figure.suptitle("Figure 10: a ReLU gate in 10 dimensions, w* = (1, …, 1), x = (10, …, 10)")
    return figure


def _srel_of_the_gate(axes, frame):
    usable = frame[np.isfinite(frame["srel_sgd"])]
    trusted, lost = usable[usable["resolved"]], usable[~usable["resolved"]]
    axes.scatter(lost["step"], lost["srel_sgd"], s=3, color=PALETTE[7], label="SGD, single runs, below rounding")
    mean = trusted.groupby("step")["srel_sgd"].mean()
    axes.plot(mean.index, mean, color=PALETTE[0], lw=2, label="SGD, mean over resolved runs")
    flow = frame.groupby("step")["srel_flow"].mean()
    axes.plot(flow.index, flow, color=PALETTE[1], ls="--", lw=2, label="flow (eqs. 19, 20), mean over runs")
    bound = frame["bound"].iloc[0]
    axes.axhline(bound, color="black", lw=0.8, ls=":", label=f"bound of Theorem 4.3: {bound:.2f}")


def plot_distance(frame):
    """Figure 11: S_rel of eq. 14 against ‖x' − x‖ at several times. Columns time, distance, srel."""
    _check(frame, "time", "distance", "srel")
    figure, grid = new_figure(1, 1, width=6.5, height=4.2)
    axes = grid[0, 0]
    styles = ["-", "--", "-.", ":"]
    for (time, part), color, style in zip(frame.groupby("time"), PALETTE, styles, strict=False):
        axes.plot(part["distance"], part["srel"], color=color, ls=style, label=f"t = {time:g}")
    axes.set(xlabel="distance ‖x' − x‖", ylabel="$S_{rel}(x', x)$, eq. 14")
    axes.set_title("Figure 11: x' = (−1, −11, 1), x = x' + √z (1, 1, 1), θ = 0.001")
    axes.legend(title="time (flow at speed θ)")
    return figure


def plot_flow_pairs(frame):
    """Figure 12: S_rel of eq. 14 over time, one panel a pair. Columns pair, time, srel."""
    _check(frame, "pair", "time", "srel")
    pairs = list(frame["pair"].unique())
    figure, grid = new_figure(1, len(pairs), width=4.4, height=3.8)
    for pair, axes in zip(pairs, grid[0], strict=True):
        part = frame[frame["pair"] == pair]
        axes.plot(part["time"], part["srel"], color=PALETTE[0])
        axes.set(xlabel="time t (flow at speed θ = 0.001)", ylabel="$S_{rel}(x', x)$, eq. 14")
        axes.set_title(pair, fontsize="medium")
    figure.suptitle("Figure 12 (the paper's pairs are lost; these are ours)")
    return figure


def plot_sgd_pairs(frame):
    """Figure 13: S_rel along the SGD of eq. 15 with the theory over it, one panel a pair.

    Columns pair, step, mean, sd (over runs), limit (eq. 13), finite (eqs. 26/28 along the flow), runs.
    """
    _check(frame, "pair", "step", "mean", "sd", "limit", "finite", "runs")
    pairs = list(frame["pair"].unique())
    figure, grid = new_figure(1, len(pairs), width=4.4, height=4.0)
    for pair, axes in zip(pairs, grid[0], strict=True):
        part = frame[frame["pair"] == pair]
        low, high = part["mean"] - part["sd"], part["mean"] + part["sd"]
        _band(axes, part, "step", low, high, PALETTE[0], f"SGD, mean over {part['runs'].iloc[0]} runs ± 1 s.d.")
        axes.plot(part["step"], part["limit"], color=PALETTE[1], ls="--", label="flow, η → 0 (eq. 13)")
        axes.plot(part["step"], part["finite"], color=PALETTE[2], ls=":", lw=2, label="flow, η = 0.001 (eqs. 26, 28)")
        axes.set(xlabel="iteration of SGD, η = 0.001", ylabel="$S_{rel}(x', x)$")
        axes.set_title(pair, fontsize="medium")
        axes.legend(fontsize="small")
    figure.suptitle("Figure 13: SGD on eq. 15 and the flow")
    return figure
