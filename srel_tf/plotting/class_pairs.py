"""S^{k,smooth} over training, as in Figures 1, 2 and 14 of the paper."""

import seaborn as sns

from srel_tf.errors import FrameError
from srel_tf.frames import check_columns, rule_names
from srel_tf.plotting.style import MEASURE_NAMES, class_palette, new_figure, population_deviation

NEEDED = [
    *("run", "step", "epoch", "measure", "update", "estimator", "learning_rate"),
    *("source_class", "target_class", "mean"),
]

WIDE = 100
_CURVE = ["source_class", "target_class", "epoch"]


def plot_class_pairs(pairs, classes=None):
    """One panel a measure (column) and source class (row): Definition 3 for each target class over the epochs.

    pairs: what `srel_tf.smooth` returns, of one update rule. Lines are means over runs, bands their population standard
    deviation; the intra-class line is solid, inter-class lines are dashed. A column whose means span more than a factor
    of `WIDE` has a logarithmic axis. Raises `FrameError` for a frame of several
    update rules or without rows, and for a class that is no source class.
    """
    check_columns(pairs, NEEDED)
    rules = [] if pairs.empty else rule_names(pairs).unique().tolist()
    if len(rules) != 1:
        raise FrameError(f"expected one update rule to draw, got {rules}: select one")
    measures = pairs["measure"].unique()
    classes = list(pairs["source_class"].unique()) if classes is None else list(classes)
    unknown = [c for c in classes if c not in set(pairs["source_class"])]
    if unknown:
        raise FrameError(f"classes {unknown} are no source classes: choose from {list(pairs['source_class'].unique())}")
    targets = classes + [c for c in pairs["target_class"].unique() if c not in classes]
    figure, axes = new_figure(len(classes), len(measures), sharex=True, sharey="col")
    for row, source in enumerate(classes):
        for column, measure in enumerate(measures):
            chosen = pairs[(pairs["source_class"] == source) & (pairs["measure"] == measure)]
            means = pairs.loc[pairs["measure"] == measure, [*_CURVE, "mean"]].groupby(_CURVE)["mean"].mean()
            wide = means.max() > WIDE * means.min() > 0
            _panel(axes[row, column], chosen, source, measure, targets, wide)
            axes[row, column].set_xlabel("epochs" if row == len(classes) - 1 else "")
    return figure


def _panel(ax, chosen, source, measure, targets, wide):
    present = [c for c in targets if c in set(chosen["target_class"])]
    sns.lineplot(
        chosen.astype({"epoch": float}),
        x="epoch",
        y="mean",
        hue="target_class",
        hue_order=present,
        palette={c: colour for c, colour in class_palette(targets).items() if c in present},
        style="target_class",
        dashes={c: "" if c == source else (4, 2) for c in present},
        errorbar=population_deviation if chosen["run"].nunique() > 1 else None,
        ax=ax,
    )
    ax.set(title=f"{MEASURE_NAMES.get(measure, measure)}, source: {source}", ylabel="mean $S_{rel}$ of the class pair")
    if wide:
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    ax.legend(title="target class", fontsize="small", title_fontsize="small")
