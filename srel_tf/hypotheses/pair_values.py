"""Values of pairs, such as distances and proximities, joined to the rows of a frame."""

import numpy as np
import pandas as pd

from srel_tf.errors import FrameError
from srel_tf.hypotheses.series import cube


def join(
    part: pd.DataFrame,
    values: pd.DataFrame,
    column: str,
) -> pd.DataFrame:
    """Add a column of `values` to the rows of a group. Rows are matched by all identifying columns that `values` has.

    Args:
        part: Rows of a group.
        values: Frame with the column to add and some of the columns `run`, `seed`, `step`, `source_id`, `target_id`.
        column: Name of the column.

    Returns:
        The rows that have a value.

    Raises:
        FrameError: A pair has several values, or no pair has a value.
    """
    on = [
        name
        for name in ("run", "seed", "step", "source_id", "target_id")
        if name in values
    ]
    is_second = values.duplicated(on)
    if is_second.any():
        raise FrameError(
            f"{is_second.sum()} pairs have a second {column} with equal values of {on}: keep one of them"
        )
    # Seeds and steps are compared as floats, because pandas does not merge nullable integers with NumPy's integers.
    types = {name: float for name in on if name in ("seed", "step")}
    left = part.astype(types)
    right = values[[*on, column]].astype(types)
    joined = left.merge(right, on=on)
    if joined.empty:
        raise FrameError(
            f"no row of the frame has a {column}: the columns {on} must have the same values in both frames"
        )
    return joined


def by_source(rows: pd.DataFrame, name: str) -> np.ndarray:
    """Arrange a column of the rows of one step as [seed, target, source], with NaN for missing rows."""
    whole = cube(rows.assign(srel=rows[name]))
    source, sources = whole.pairs.get_level_values(0).factorize()
    target, targets = whole.pairs.get_level_values(1).factorize()
    values = np.full((len(whole.seeds), len(targets), len(sources)), np.nan)
    values[:, target, source] = whole.srel[:, :, 0]
    return values
