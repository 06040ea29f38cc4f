"""One S_rel matrix as a heat map."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from srel_tf.errors import FrameError
from srel_tf.frames.schema import check_columns
from srel_tf.plotting.style import measure_name, new_figure


def plot_matrix(frame: pd.DataFrame, measure: str) -> Figure:
    """Plot a heat map of one measurement: rows are sources and columns are targets, in the order of the probe.

    The colour scale is logarithmic. Entries that are invalid or 0 stay blank. The title shows the step if the frame has
    a column `step`.

    Args:
        frame: S_rel frame of one step and update rule.
        measure: Measure to draw.

    Returns:
        The figure.

    Raises:
        FrameError: If the rows belong to several matrices, or there are no rows.

    Example:
        >>> import pandas as pd
        >>> from srel_tf.plotting import plot_matrix
        >>> frame = pd.DataFrame({"source_id": [0, 0, 1, 1], "target_id": [0, 1, 0, 1], "measure": "kl"})
        >>> frame = frame.assign(source_class="cat", target_class="cat", srel=[1.0, 0.5, 0.4, 1.0])
        >>> plot_matrix(frame, "kl").axes[0].get_title()
        'KL (Definition 2) (blank: not valid, or 0)'
    """
    check_columns(
        frame,
        ["measure", "source_id", "target_id", "source_class", "target_class", "srel"],
    )
    rows = frame[frame["measure"] == measure]
    if rows.empty or rows.duplicated(["source_id", "target_id"]).any():
        raise FrameError(
            f"expected one matrix of measure {measure!r}, got {len(rows)} rows: select one step and update rule"
        )
    matrix = _as_matrix(rows)
    low, high = _colour_range(matrix)
    figure, axes = new_figure(1, 1, width=5.4, height=4.6)
    ax = axes[0, 0]
    sns.heatmap(
        matrix,
        mask=~(matrix > 0),
        norm=LogNorm(low, high),
        vmin=low,
        vmax=high,
        cmap="viridis",
        square=True,
        cbar_kws={"label": "$S_{rel}$"},
        ax=ax,
    )
    _class_ticks(ax.yaxis, _classes(rows, "source"))
    _class_ticks(ax.xaxis, _classes(rows, "target"))
    ax.grid(False)
    ax.set(
        xlabel="target x' (read)",
        ylabel="source x (updated on)",
    )
    step = f", step {rows['step'].iloc[0]}" if "step" in rows else ""
    title = f"{measure_name(measure)}{step} (blank: not valid, or 0)"
    ax.set_title(title, fontsize="medium")
    return figure


def _as_matrix(rows: pd.DataFrame) -> np.ndarray:
    """Arrange S_rel as [source, target], in the order in which the ids first occur."""
    sources = rows["source_id"].unique()
    targets = rows["target_id"].unique()
    matrix = rows.pivot(index="source_id", columns="target_id", values="srel")
    return matrix.loc[sources, targets].to_numpy()


def _colour_range(matrix: np.ndarray) -> tuple[float, float]:
    """Return the limits of the colour scale: the 2% quantile and the maximum of the positive entries."""
    positive = matrix[np.isfinite(matrix) & (matrix > 0)]
    if not len(positive):
        return 0.1, 1  # All entries are blank, so any valid range is possible.
    low, high = np.quantile(positive, [0.02, 1])
    return low, high


def _classes(rows: pd.DataFrame, end: str) -> list[str]:
    """Return the class of each "source" or "target", in the order in which the ids first occur."""
    return rows.drop_duplicates(f"{end}_id")[f"{end}_class"].tolist()


def _class_ticks(axis: Axis, classes: list[str]) -> None:
    """Put a tick at the middle of each sequence of equal classes."""
    starts = [i for i, name in enumerate(classes) if i == 0 or name != classes[i - 1]]
    ends = [*starts[1:], len(classes)]
    middles = [(start + end) / 2 for start, end in zip(starts, ends, strict=True)]
    names = [classes[start] for start in starts]
    axis.set_ticks(middles, names, rotation=0)
