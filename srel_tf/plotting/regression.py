"""S_rel in regression, as in Figures 3, 4 and 5 of the paper."""

import seaborn as sns
from matplotlib.lines import Line2D

from srel_tf.errors import FrameError
from srel_tf.frames.schema import check_columns
from srel_tf.plotting.style import class_palette, new_figure

PALETTE = sns.color_palette("colorblind")


def plot_distances(frame, distances):
    """Figure 3: S_rel(t, x', x_i) against the distance of x' and x_i; a row a metric, a panel a step, a colour a run.

    frame: S_rel frame of one target and one measure.
    distances: columns run, step, target_id, source_id, distance, metric (what `srel_tf.hypotheses` takes).
    Raises `FrameError` for frames that do not fit each other.
    """
    check_columns(frame, ["run", "step", "measure", "source_id", "target_id", "srel", "valid"])
    check_columns(distances, ["run", "step", "source_id", "target_id", "distance", "metric"])
    if frame["target_id"].nunique() != 1 or frame["measure"].nunique() != 1:
        raise FrameError("expected one target x' and one measure to draw: select them")
    keys = ["run", "step", "source_id", "target_id"]
    joined = frame[frame["valid"]].merge(distances, on=keys)
    if joined.empty:
        raise FrameError("no row of the frame has a distance: run, step, source_id and target_id must agree")
    metrics, steps = joined["metric"].unique(), sorted(joined["step"].unique())
    figure, axes = new_figure(len(metrics), len(steps), width=2.2, height=2.4, sharey=True, sharex="row")
    colours = class_palette(joined["run"].unique())
    for row, metric in zip(axes, metrics, strict=True):
        for ax, step in zip(row, steps, strict=True):
            chosen = joined[(joined["metric"] == metric) & (joined["step"] == step)]
            for run, part in chosen.groupby("run"):
                ax.scatter(part["distance"], part["srel"], s=3, color=colours[run], lw=0)
            ax.set(title=f"$t$ = {step}", xlabel=f"$\\|x' - x_i\\|$, {metric}")
        row[0].set_ylabel("$S_{rel}(t, x', x_i)$")
    key = [Line2D([], [], color=colour, marker="o", ls="", ms=4, label=run) for run, colour in colours.items()]
    figure.legend(handles=key, loc="outside lower center", ncols=len(key), fontsize="small")
    figure.suptitle("Figure 3: $S_{rel}$ against distance at a fixed $x'$")
    return figure


def plot_pairs(pairs, risks=None):
    """Figure 4: S_rel of pairs (x, x') over time, mean over runs; with `risks`, Figure 5: the risks laid over it.

    The band is one population standard deviation over the runs. Risks have a logarithmic axis of their own.

    pairs: columns pair (a label), run, step, srel, valid. risks: columns run, step, split, loss.
    """
    check_columns(pairs, ["pair", "run", "step", "srel", "valid"])
    figure, grid = new_figure(1, 1, width=8, height=4.2)
    ax = grid[0, 0]
    shown = pairs.assign(srel=pairs["srel"].where(pairs["valid"]))
    for (pair, part), color in zip(shown.groupby("pair", sort=False), PALETTE, strict=False):
        _curve(ax, part, "srel", color, f"$S_{{rel}}$, {pair}", band=risks is None)
    ax.set(xlabel="iteration t of SGD", ylabel="$S_{rel}(t, x', x)$", ylim=(0, None))
    runs = pairs["run"].nunique()
    title = f"Figure 4: two pairs with the same x', mean over {runs} runs ± 1 s.d."
    handles, labels = ax.get_legend_handles_labels()
    if risks is not None:
        check_columns(risks, ["run", "step", "split", "loss"])
        right = ax.twinx()
        for (split, part), style in zip(risks.groupby("split", sort=False), ("-", "--", ":"), strict=False):
            _curve(right, part, "loss", "black", f"{split} risk", style, band=False)
        right.set(yscale="log", ylabel="risk (mean squared error)")
        right.grid(False)
        handles, labels = (a + b for a, b in zip((handles, labels), right.get_legend_handles_labels(), strict=True))
        title = f"Figure 5: the pairs of Figure 4 and the risks, means over {runs} runs"
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")
    ax.set_title(title)
    return figure


def _curve(ax, part, column, color, label, style="-", band=True):
    by_step = part.groupby("step")[column]
    mean = by_step.mean()
    ax.plot(mean.index, mean, color=color, ls=style, lw=1, label=label)
    if band and part["run"].nunique() > 1:
        deviation = by_step.std(ddof=0)
        ax.fill_between(mean.index, mean - deviation, mean + deviation, color=color, alpha=0.2, lw=0)
