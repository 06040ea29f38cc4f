"""S^{k,smooth} over training, as in Figures 1, 2 and 14 of the paper."""

import seaborn as sns

from srel_tf.errors import FrameError
from srel_tf.frames.schema import check_columns, rule_names
from srel_tf.plotting.style import MEASURE_NAMES, WIDE, class_palette, new_figure, population_deviation

NEEDED = [
    *("run", "step", "epoch", "measure", "update", "estimator", "learning_rate"),
    *("source_class", "target_class", "mean"),
]
_CURVE = ["source_class", "target_class", "epoch"]


def plot_class_pairs(pairs, classes=None):
    """One panel a measure (column) and source class (row): Definition 3 for each target class over the epochs.

    pairs: what `srel_tf.smooth` returns, of one update rule, which a column `rule` may name. Lines are means over
    runs, bands their population standard deviation; the intra-class line is solid, inter-class lines are dashed. A
    column whose means span more than a factor of `WIDE` has a logarithmic axis, and bands from the lowest run to the
    highest. Raises `FrameError` for a frame of several update rules or without rows, and for a class that is no source
    class.
    """
    check_columns(pairs, NEEDED)
    rules = [] if pairs.empty else (pairs["rule"] if "rule" in pairs else rule_names(pairs)).unique().tolist()
    if len(rules) != 1:
        raise FrameError(f"expected one update rule to draw, got {rules}: select one")
    measures = pairs["measure"].unique()
    classes = list(pairs["source_class"].unique()) if classes is None else list(classes)
    unknown = [c for c in classes if c not in set(pairs["source_class"])]
    if unknown:
        raise FrameError(f"classes {unknown} are no source classes: choose from {list(pairs['source_class'].unique())}")
    targets = classes + [c for c in pairs["target_class"].unique() if c not in classes]
    figure, axes = new_figure(len(classes), len(measures), sharex=True, sharey="col")
    for column, measure in zip(axes.T, measures, strict=True):
        of_measure = pairs[pairs["measure"] == measure]
        means = of_measure.groupby(_CURVE)["mean"].mean()
        wide = means.max() > WIDE * means.min() > 0
        for ax, source in zip(column, classes, strict=True):
            _panel(ax, of_measure[of_measure["source_class"] == source], source, measure, targets, wide)
            ax.set_xlabel("")
        column[-1].set_xlabel("epochs")
        _scale(column[0], wide)  # Which all share: after the last panel, so that it holds every curve.
    figure.suptitle(f"Fictitious step: {rules[0]}; {_about_bands(pairs, axes)}", fontsize="medium")
    return figure


def _about_bands(pairs, axes):
    runs = pairs["run"].nunique()
    if runs == 1:
        return "one run"
    logarithmic = any(ax.get_yscale() == "log" for ax in axes[0])
    exception = "; on a logarithmic axis from the lowest run to the highest" if logarithmic else ""
    return f"mean over {runs} runs, bands ± 1 s.d.{exception}"


def _scale(ax, wide):
    if wide:
        ax.set_yscale("log")
        return
    low, high = ax.get_ylim()
    if low < high / 4:  # Else zero is too far away to be worth the room.
        ax.set_ylim(bottom=0)


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
        errorbar=None if chosen["run"].nunique() == 1 else ("pi", 100) if wide else population_deviation,
        ax=ax,
    )
    ax.set(title=f"{MEASURE_NAMES.get(measure, measure)}, source: {source}", ylabel="mean $S_{rel}$ of the class pair")
    ax.legend(title="target class", fontsize="small", title_fontsize="small")
