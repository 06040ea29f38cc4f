"""How well S_rel tells classes apart over training, and how wide its distribution is."""

import seaborn as sns
from matplotlib.ticker import LogFormatter

from srel_tf.errors import FrameError
from srel_tf.frames.schema import check_columns
from srel_tf.plotting.style import MEASURE_NAMES, measure_palette, new_figure, population_deviation

COLUMNS = 3


def plot_separation(separation, measures=("kl", "l1", "raw_l1", "published_kl")):
    """AUC of intra- against inter-class pairs by epoch: a panel a rule, a line a measure, mean and band over runs.

    separation: what `srel_tf.separation` returns, with a column `rule` (`srel_tf.rule_names`).
    measures: those shown, as far as they are there. Bands are one population standard deviation.
    Raises `FrameError` where none of them is there.
    """
    check_columns(separation, ["run", "epoch", "measure", "rule", "auc"])
    shown = [m for m in measures if m in set(separation["measure"])]
    if not shown:
        raise FrameError(f"no measure of {list(measures)} in the frame: it has {separation['measure'].unique()}")
    rules = list(separation["rule"].unique())
    columns = min(COLUMNS, len(rules))
    rows = -(-len(rules) // columns)
    figure, grid = new_figure(rows, columns, width=3.6, height=2.8, sharex=True, sharey=True)
    names = {m: MEASURE_NAMES.get(m, m) for m in shown}
    colours = {names[m]: colour for m, colour in measure_palette().items() if m in names}
    chosen = separation[separation["measure"].isin(shown)].astype({"epoch": float})
    chosen = chosen.assign(measure=chosen["measure"].map(names))
    for ax, rule in zip(grid.flat, rules, strict=False):
        part = chosen[chosen["rule"] == rule]
        sns.lineplot(
            part,
            x="epoch",
            y="auc",
            hue="measure",
            style="measure",
            hue_order=list(names.values()),
            style_order=list(names.values()),
            palette=colours,
            errorbar=population_deviation if part["run"].nunique() > 1 else None,
            legend=ax is grid.flat[0],
            ax=ax,
        )
        ax.axhline(0.5, color="0.4", lw=0.8, ls=":")
        ax.set(title=rule, xlabel="epochs", ylabel="AUC, intra above inter", ylim=(0, 1))
    for ax in list(grid.flat)[len(rules) :]:
        ax.remove()
    handles, labels = grid.flat[0].get_legend_handles_labels()
    grid.flat[0].get_legend().remove()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")
    return figure


def plot_spread(quantiles):
    """Distribution of S_rel over pairs, by epoch: a panel a rule (row) and measure (column), intra beside inter.

    Lines are medians, bands from the 5% to the 95% quantile, dashed lines means; averaged over runs. Logarithmic axis.

    quantiles: columns run, epoch, measure, rule, kind ("intra" or "inter"), q0.05, q0.5, q0.95, mean.
    """
    check_columns(quantiles, ["run", "epoch", "measure", "rule", "kind", "q0.05", "q0.5", "q0.95", "mean"])
    measures, rules = (list(quantiles[name].unique()) for name in ("measure", "rule"))
    figure, grid = new_figure(len(rules), len(measures), width=3.8, height=2.8, sharex=True, sharey="col")
    colours = dict(zip(("intra", "inter"), sns.color_palette("colorblind"), strict=False))
    over_runs = quantiles.groupby(["rule", "measure", "kind", "epoch"])[["q0.05", "q0.5", "q0.95", "mean"]].mean()
    for row, rule in zip(grid, rules, strict=True):
        for ax, measure in zip(row, measures, strict=True):
            for kind, colour in colours.items():
                if (rule, measure, kind) in over_runs.index.droplevel("epoch"):
                    curve = over_runs.loc[rule, measure, kind]
                    ax.plot(curve.index, curve["q0.5"], color=colour, label=f"{kind}, median")
                    ax.plot(curve.index, curve["mean"], color=colour, ls="--", lw=1, label=f"{kind}, mean")
                    ax.fill_between(curve.index, curve["q0.05"], curve["q0.95"], color=colour, alpha=0.2, lw=0)
            ax.set(yscale="log", title=f"{MEASURE_NAMES.get(measure, measure)}\n{rule}", xlabel="epochs")
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))  # Numbers within two decades, too.
        row[0].set_ylabel("$S_{rel}$, bands 5–95% of pairs")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")
    return figure
