"""S^{k,smooth} of Definition 3 during training, as in Figures 1, 2 and 14 of the paper."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srel_tf.errors import FrameError
from srel_tf.frames.schema import check_columns, rule_names
from srel_tf.plotting.style import (
    class_palette,
    is_wide,
    measure_name,
    new_figure,
    population_deviation,
)

NEEDED = [
    *("run", "step", "epoch", "measure", "update", "estimator", "learning_rate"),
    *("source_class", "target_class", "mean"),
]
_CURVE = ["source_class", "target_class", "epoch"]


def plot_class_pairs(
    pairs: pd.DataFrame, classes: Sequence[str] | None = None
) -> Figure:
    """Plot S^{k,smooth} of Definition 3 over the epochs: one column per measure, one row per source class.

    Each panel has one line per target class: solid for intra-class pairs, dashed for inter-class pairs. Lines are means
    over runs. Bands are ± one population standard deviation over runs. If the highest mean in a column is more than
    `WIDE` times the lowest mean, the axes of the column are logarithmic, and the bands reach from the lowest run to the
    highest run.

    Args:
        pairs: Result of `srel_tf.smooth` for one update rule. An optional column `rule` contains the name of the rule.
        classes: Source classes to draw. The default is all of them.

    Returns:
        The figure.

    Raises:
        FrameError: If the frame has no rows, several update rules, or several η at one step; or if a requested class
            is not a source class.

    Example:
        >>> import pandas as pd
        >>> from srel_tf.plotting import plot_class_pairs
        >>> pairs = pd.DataFrame({"source_class": "cat", "target_class": ["cat", "cat", "dog", "dog"]})
        >>> pairs = pairs.assign(mean=[1.0, 1.0, 0.5, 0.2], step=[0, 9, 0, 9], epoch=[0, 1, 0, 1], run="a")
        >>> pairs = pairs.assign(measure="kl", update="sgd", estimator="exact", learning_rate=0.1)
        >>> len(plot_class_pairs(pairs).axes)
        1
    """
    check_columns(pairs, NEEDED)
    rule = _only_rule(pairs)
    measures = pairs["measure"].unique()
    sources = _source_classes(pairs, classes)
    targets = sources + [
        name for name in pairs["target_class"].unique() if name not in sources
    ]
    figure, axes = new_figure(
        len(sources),
        len(measures),
        sharex=True,
        sharey="col",
    )
    for column, measure in zip(axes.T, measures, strict=True):
        of_measure = pairs[pairs["measure"] == measure]
        _column(column, of_measure, measure, sources, targets)
    bands = _describe_bands(pairs, axes)
    figure.suptitle(f"Fictitious step: {rule}; {bands}", fontsize="medium")
    return figure


def _only_rule(pairs: pd.DataFrame) -> str:
    """Return the name of the update rule. Raise `FrameError` unless there is one rule, with one η per run and step."""
    rules: list[str] = []
    if not pairs.empty:
        names = pairs["rule"] if "rule" in pairs else rule_names(pairs)
        rules = names.unique().tolist()
    if len(rules) != 1:
        raise FrameError(
            f"expected one update rule to draw, got {rules}: select the rows of one rule"
        )
    rates_of_step = pairs.groupby(["run", "step"])["learning_rate"].nunique()
    if (rates_of_step > 1).any():
        rates = sorted(pairs["learning_rate"].unique().tolist())
        raise FrameError(
            f"expected one η at each step, got {rates}: select the rows of one η"
        )
    return rules[0]


def _source_classes(pairs: pd.DataFrame, classes: Sequence[str] | None) -> list[str]:
    """Return the source classes to draw. Raise `FrameError` if one of `classes` is not a source class."""
    present = list(pairs["source_class"].unique())
    if classes is None:
        return present
    unknown = [name for name in classes if name not in present]
    if unknown:
        raise FrameError(
            f"classes {unknown} are not source classes: choose from {present}"
        )
    return list(classes)


def _column(
    column: np.ndarray,
    pairs: pd.DataFrame,
    measure: str,
    sources: list[str],
    targets: list[str],
) -> None:
    """Draw the panels of one measure.

    Args:
        column: Axes, one per source class.
        pairs: Rows of the measure.
        measure: The measure.
        sources: Source classes, one per panel.
        targets: Target classes, in the order of their colours.
    """
    means = pairs.groupby(_CURVE)["mean"].mean()
    wide = is_wide(means.min(), means.max())
    for ax, source in zip(column, sources, strict=True):
        of_source = pairs[pairs["source_class"] == source]
        _panel(ax, of_source, source, targets, wide)
        ax.set_title(f"{measure_name(measure)}, source: {source}")
        ax.set_xlabel("")
    column[-1].set_xlabel("epochs")
    # The panels of a column share the y-axis, so the axis is scaled after all curves have been drawn.
    _scale(column[0], wide)


def _describe_bands(pairs: pd.DataFrame, axes: np.ndarray) -> str:
    """Describe the lines and bands in words for the title."""
    runs = pairs["run"].nunique()
    if runs == 1:
        return "one run"
    is_logarithmic = any(ax.get_yscale() == "log" for ax in axes[0])
    exception = (
        "; on a logarithmic axis from the lowest run to the highest"
        if is_logarithmic
        else ""
    )
    return f"mean over {runs} runs, bands ± 1 s.d.{exception}"


def _scale(ax: Axes, wide: bool) -> None:
    """Make the axis logarithmic if `wide`. Otherwise let the axis start at 0 if 0 is near the lower limit."""
    if wide:
        ax.set_yscale("log")
        return
    low, high = ax.get_ylim()
    is_zero_near = low < high / 4
    if is_zero_near:
        ax.set_ylim(bottom=0)


def _panel(
    ax: Axes,
    pairs: pd.DataFrame,
    source: str,
    targets: list[str],
    wide: bool,
) -> None:
    """Draw one panel.

    Args:
        ax: The panel.
        pairs: Rows of one measure and source class.
        source: The source class.
        targets: Target classes, in the order of their colours.
        wide: Whether the axis will be logarithmic.
    """
    drawn = set(pairs["target_class"])
    present = [name for name in targets if name in drawn]
    palette = class_palette(targets)
    band = (
        ("pi", 100) if wide else population_deviation
    )  # ("pi", 100) reaches from the lowest run to the highest run.
    has_one_run = pairs["run"].nunique() == 1
    sns.lineplot(
        pairs.astype({"epoch": float}),
        x="epoch",
        y="mean",
        hue="target_class",
        hue_order=present,
        palette={name: palette[name] for name in present},
        style="target_class",
        dashes={name: "" if name == source else (4, 2) for name in present},
        errorbar=None if has_one_run else band,
        ax=ax,
    )
    ax.set_ylabel("mean $S_{rel}$ of the class pair")
    ax.legend(
        title="target class",
        fontsize="small",
        title_fontsize="small",
    )
