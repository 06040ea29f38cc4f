"""One S_rel matrix as a heat map."""

import numpy as np
import seaborn as sns
from matplotlib.colors import LogNorm

from srel_tf.errors import FrameError
from srel_tf.frames.schema import check_columns
from srel_tf.plotting.style import MEASURE_NAMES, new_figure


def plot_matrix(frame, measure):
    """Heat map of one measurement: rows are sources, columns targets, in the probe's order, logarithmic colours.

    frame: rows of one step and update rule. Invalid and zero entries stay blank. The title names the step, if the
    frame has it. Raises `FrameError` for rows of
    several matrices or none.
    """
    check_columns(frame, ["measure", "source_id", "target_id", "source_class", "target_class", "srel"])
    rows = frame[frame["measure"] == measure]
    if rows.empty or rows.duplicated(["source_id", "target_id"]).any():
        raise FrameError(f"expected one matrix of measure {measure!r}, got {len(rows)} rows: select one step and rule")
    sources, targets = rows["source_id"].unique(), rows["target_id"].unique()
    matrix = rows.pivot(index="source_id", columns="target_id", values="srel").loc[sources, targets].to_numpy()
    positive = matrix[np.isfinite(matrix) & (matrix > 0)]
    low, high = np.quantile(positive, [0.02, 1]) if len(positive) else (0.1, 1)  # All blank: any colours will do.
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
    for axis, name in ((ax.yaxis, "source"), (ax.xaxis, "target")):
        _class_ticks(axis, rows.drop_duplicates(f"{name}_id")[f"{name}_class"].tolist())
    ax.grid(False)
    at = f", step {rows['step'].iloc[0]}" if "step" in rows else ""
    title = f"{MEASURE_NAMES.get(measure, measure)}{at} (blank: not valid, or 0)"
    ax.set(xlabel="target x' (read)", ylabel="source x (updated on)")
    ax.set_title(title, fontsize="medium")
    return figure


def _class_ticks(axis, classes):
    """A tick in the middle of each run of equal classes."""
    starts = [i for i, c in enumerate(classes) if i == 0 or c != classes[i - 1]]
    ends = [*starts[1:], len(classes)]
    axis.set_ticks([(s + e) / 2 for s, e in zip(starts, ends, strict=True)], [classes[s] for s in starts], rotation=0)
