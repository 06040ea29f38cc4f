"""Statistics of S_rel frames: Definition 3, and intra-class against inter-class pairs. Knows no TensorFlow."""

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from srel_tf.errors import FrameError
from srel_tf.frames.lazy import StoredFrame
from srel_tf.frames.schema import MATRIX, check_columns

NEEDED = [*MATRIX, "source_class", "target_class", "source_id", "target_id", "srel", "valid"]


def smooth(frame, diagonal=True):
    """S^{k,smooth} of Definition 3: the mean of S_rel over the pairs of a source class and a target class.

    frame: a DataFrame, or a `StoredFrame` (`scan_frame`), which is read piece by piece.
    In the paper's words the target class is c1, the source class (where the update was sampled) c2. The rows of an
    estimator, as it was asked for, are one matrix, whatever their `method`.
    diagonal: whether the pairs of an example with itself, which are 1 by definition, count, as they do in the paper.

    Returns one row a (run, step, measure, update, estimator, …, source_class, target_class) with `mean` and `median`
    over the valid entries, NaN where there are none, `n_valid` how many there were and `n_pairs` of how many.
    Raises `FrameError` for missing columns.
    """
    if isinstance(frame, StoredFrame):
        return pd.concat([_smooth(piece, diagonal) for piece in frame.pieces(NEEDED)], ignore_index=True)
    check_columns(frame, NEEDED)
    return _smooth(frame, diagonal)


def _smooth(frame, diagonal):
    pairs = frame if diagonal else frame[frame["source_id"] != frame["target_id"]]
    by_class = pairs.assign(srel=_valid_srel(pairs)).groupby(
        [*MATRIX, "source_class", "target_class"], dropna=False, sort=False, observed=True
    )
    return by_class["srel"].agg(mean="mean", median="median", n_valid="count", n_pairs="size").reset_index()


def separation(frame):
    """How well S_rel tells pairs of one class (intra) from pairs of two (inter), the diagonal left out.

    frame: a DataFrame, or a `StoredFrame` (`scan_frame`), which is read piece by piece.

    Returns one row a (run, step, measure, update, estimator, …): `auc`, the probability that a random intra-class entry
    exceeds a random inter-class one, ties counting half; `median_intra`, `median_inter` and their ratio
    `ratio_of_medians`; `n_intra`, `n_inter`, the valid entries of each. NaN where either kind has none.
    Raises `FrameError` for missing columns or a frame without classes.
    """
    if isinstance(frame, StoredFrame):
        return pd.concat([_separations(piece) for piece in frame.pieces(NEEDED)], ignore_index=True)
    check_columns(frame, NEEDED)
    return _separations(frame)


def _separations(frame):
    if len(frame) and (frame["source_class"].isna() | (frame["source_class"].astype(str) == "")).any():
        raise FrameError("the frame's source_class is empty: separation compares classes, and these pairs have none")
    pairs = frame[frame["source_id"] != frame["target_id"]]
    rows = [
        {**dict(zip(MATRIX, key, strict=True)), **_separation(group)}
        for key, group in pairs.groupby(MATRIX, dropna=False, sort=False, observed=True)
    ]
    columns = [*MATRIX, "auc", "median_intra", "median_inter", "ratio_of_medians", "n_intra", "n_inter"]
    return pd.DataFrame(rows, columns=columns).astype({name: frame[name].dtype for name in MATRIX})


def auc(higher, lower):
    """P(a value of `higher` exceeds one of `lower`), ties counting half: Mann–Whitney's U over the number of pairs.

    higher, lower: values [n], [m] without NaN, as S_rel of intra-class and of inter-class pairs. NaN where n or m is 0.
    """
    if not (len(higher) and len(lower)):
        return np.nan
    return mannwhitneyu(higher, lower, method="asymptotic").statistic / (len(higher) * len(lower))


def _separation(group):
    srel, same = _valid_srel(group).to_numpy(), (group["source_class"] == group["target_class"]).to_numpy()
    intra, inter = (srel[kind & np.isfinite(srel)] for kind in (same, ~same))
    if not (len(intra) and len(inter)):
        median_intra = median_inter = ratio = np.nan
    else:
        median_intra, median_inter = np.median(intra), np.median(inter)
        ratio = median_intra / median_inter if median_inter else np.nan
    return {
        "auc": auc(intra, inter),
        "median_intra": median_intra,
        "median_inter": median_inter,
        "ratio_of_medians": ratio,
        "n_intra": len(intra),
        "n_inter": len(inter),
    }


def _valid_srel(frame):
    return frame["srel"].where(frame["valid"].astype(bool))
