"""Statistics of S_rel frames: Definition 3, and intra-class compared with inter-class pairs.

This module does not import TensorFlow.
"""

from collections.abc import Sized
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from srel_tf.errors import FrameError
from srel_tf.frames.lazy import StoredFrame
from srel_tf.frames.schema import MATRIX, check_columns, with_name

NEEDED = [
    *MATRIX,
    "source_class",
    "target_class",
    "source_id",
    "target_id",
    "srel",
    "valid",
]


class Separation(NamedTuple):
    """The statistics of `separation` for one measurement."""

    auc: float = np.nan
    median_intra: float = np.nan
    median_inter: float = np.nan
    ratio_of_medians: float = np.nan
    n_intra: int = 0
    n_inter: int = 0


def smooth(frame: pd.DataFrame | StoredFrame, diagonal: bool = True) -> pd.DataFrame:
    """Compute S^{k,smooth} of Definition 3: the mean of S_rel over the pairs of a source class and a target class.

    In the paper's notation the target class is c1, and the source class is c2 (the update uses an example of c2). All
    rows of one requested estimator belong to one matrix, even if their `method` differs.

    Args:
        frame: A DataFrame, or a `StoredFrame` (`scan_frame`), which is read in pieces.
        diagonal: Whether to include the pairs of an example with itself, as the paper does. S_rel of such a pair is 1
            by definition.

    Returns:
        One row for each measurement, source class and target class. A measurement is identified by run, seed, name,
        step, epoch, measure, update, estimator and learning_rate. The other columns are:

        - `mean` and `median` of the valid entries; NaN if there are none
        - `n_valid`: number of valid entries
        - `n_pairs`: number of all entries

    Raises:
        FrameError: If columns are missing.

    Example:
        >>> import pandas as pd, srel_tf
        >>> measurement = dict(run="a", seed=0, step=0, epoch=0.0, measure="kl", update="sgd", estimator="exact",
        ...                    learning_rate=0.1)
        >>> frame = pd.DataFrame({
        ...     **measurement, "source_id": [0, 0, 1, 1], "target_id": [0, 1, 0, 1], "source_class": "cat",
        ...     "target_class": ["cat", "dog", "cat", "dog"], "srel": [1.0, 0.5, 0.75, 0.25], "valid": True,
        ... })
        >>> srel_tf.smooth(frame)[["source_class", "target_class", "mean", "n_valid"]].values.tolist()
        [['cat', 'cat', 0.875, 2], ['cat', 'dog', 0.375, 2]]
    """
    if isinstance(frame, StoredFrame):
        return pd.concat(
            [_smooth(piece, diagonal) for piece in frame.pieces(NEEDED)],
            ignore_index=True,
        )
    return _smooth(_checked(frame), diagonal)


def _smooth(frame: pd.DataFrame, diagonal: bool) -> pd.DataFrame:
    pairs = frame if diagonal else _without_diagonal(frame)
    keys = [*MATRIX, "source_class", "target_class"]
    valid_pairs = pairs.assign(srel=_valid_srel(pairs))
    by_class = valid_pairs.groupby(keys, dropna=False, sort=False, observed=True)[
        "srel"
    ]
    return by_class.agg(
        mean="mean", median="median", n_valid="count", n_pairs="size"
    ).reset_index()


def separation(frame: pd.DataFrame | StoredFrame) -> pd.DataFrame:
    """Compare S_rel of intra-class pairs with S_rel of inter-class pairs, without the diagonal.

    In an intra-class pair source and target have the same class; in an inter-class pair their classes differ.

    Args:
        frame: A DataFrame, or a `StoredFrame` (`scan_frame`), which is read in pieces.

    Returns:
        One row for each measurement, which is identified by run, seed, name, step, epoch, measure, update, estimator
        and learning_rate. The other columns are:

        - `auc`: probability that a random intra-class entry exceeds a random inter-class entry; ties count half
        - `median_intra`, `median_inter`: medians of the entries
        - `ratio_of_medians`: `median_intra` / `median_inter`; NaN if `median_inter` is 0
        - `n_intra`, `n_inter`: numbers of valid entries

        Only valid entries count. If there are no valid entries of one kind (intra-class or inter-class), all statistics
        except `n_intra` and `n_inter` are NaN.

    Raises:
        FrameError: If columns are missing, or the frame has no classes.

    Example:
        >>> import pandas as pd, srel_tf
        >>> measurement = dict(run="a", seed=0, step=0, epoch=0.0, measure="kl", update="sgd", estimator="exact",
        ...                    learning_rate=0.1)
        >>> frame = pd.DataFrame({
        ...     **measurement, "source_id": 0, "target_id": [0, 1, 2], "source_class": "cat",
        ...     "target_class": ["cat", "cat", "dog"], "srel": [1.0, 0.75, 0.25], "valid": True,
        ... })
        >>> srel_tf.separation(frame)[["auc", "ratio_of_medians", "n_intra", "n_inter"]].values.tolist()
        [[1.0, 3.0, 1.0, 1.0]]
    """
    if isinstance(frame, StoredFrame):
        return pd.concat(
            [_separations(piece) for piece in frame.pieces(NEEDED)], ignore_index=True
        )
    return _separations(_checked(frame))


def _checked(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame, with a column `name` if it has none. Raise `FrameError` if another column is missing."""
    check_columns(frame, [column for column in NEEDED if column != "name"])
    return with_name(frame)


def _separations(frame: pd.DataFrame) -> pd.DataFrame:
    _check_classes(frame)
    pairs = _without_diagonal(frame)
    measurements = pairs.groupby(MATRIX, dropna=False, sort=False, observed=True)
    rows = [(*key, *_separation(measurement)) for key, measurement in measurements]
    types_of_frame = {name: frame[name].dtype for name in MATRIX}
    return pd.DataFrame(rows, columns=[*MATRIX, *Separation._fields]).astype(
        types_of_frame
    )


def _check_classes(frame: pd.DataFrame) -> None:
    """Raise `FrameError` if any row has no class."""
    classes = frame[["source_class", "target_class"]]
    if (classes.isna() | (classes.astype(str) == "")).any(axis=None):
        raise FrameError(
            "source_class or target_class is empty in some rows, but separation compares classes: measure a ProbeSet "
            "with class labels y"
        )


def _separation(measurement: pd.DataFrame) -> Separation:
    """Compare the valid entries of one measurement; its diagonal is already removed."""
    srel = _valid_srel(measurement).to_numpy()
    is_intra = (measurement["source_class"] == measurement["target_class"]).to_numpy()
    is_valid = np.isfinite(srel)
    intra = srel[is_intra & is_valid]
    inter = srel[~is_intra & is_valid]
    if not (len(intra) and len(inter)):
        return Separation(n_intra=len(intra), n_inter=len(inter))
    median_intra = np.median(intra)
    median_inter = np.median(inter)
    return Separation(
        auc=auc(intra, inter),
        median_intra=median_intra,
        median_inter=median_inter,
        ratio_of_medians=median_intra / median_inter if median_inter else np.nan,
        n_intra=len(intra),
        n_inter=len(inter),
    )


def auc(higher: Sized, lower: Sized) -> float:
    """Compute the probability that a random value of `higher` exceeds a random value of `lower`; ties count half.

    This is the Mann–Whitney statistic U divided by the number of pairs.

    Args:
        higher: Values [n] without NaN, for example S_rel of intra-class pairs.
        lower: Values [m] without NaN, for example S_rel of inter-class pairs.

    Returns:
        The probability; NaN if n or m is 0.

    Example:
        >>> import srel_tf
        >>> float(srel_tf.auc([0.9, 0.5], [0.5, 0.1]))
        0.875
    """
    num_pairs = len(higher) * len(lower)
    if not num_pairs:
        return np.nan
    return mannwhitneyu(higher, lower, method="asymptotic").statistic / num_pairs


def _without_diagonal(frame: pd.DataFrame) -> pd.DataFrame:
    """Drop the pairs of an example with itself."""
    return frame[frame["source_id"] != frame["target_id"]]


def _valid_srel(frame: pd.DataFrame) -> pd.Series:
    """Return the column `srel` with NaN for invalid entries."""
    return frame["srel"].where(frame["valid"].astype(bool))
