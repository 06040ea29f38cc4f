"""Statistics of S_rel frames: Definition 3, and intra-class against inter-class pairs. Knows no TensorFlow."""

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from srel_tf.errors import FrameError
from srel_tf.frames import MATRIX, check_columns
from srel_tf.stored import StoredFrame

NEEDED = [*MATRIX, "source_class", "target_class", "source_id", "target_id", "srel", "valid"]
SERIES = ["run", "seed", "measure", "update"]


def smooth(frame, diagonal=True):
    """S^{k,smooth} of Definition 3: the mean of S_rel over the pairs of a source class and a target class.

    frame: a DataFrame, or a `StoredFrame` (`scan_frame`), which is read piece by piece.
    In the paper's words the target class is c1, the source class (where the update was sampled) c2. What estimator
    "auto" measured is one matrix, under that name, whichever estimator gave its rows.
    diagonal: whether the pairs of an example with itself, which are 1 by definition, count, as they do in the paper.

    Returns one row a (run, step, measure, update, estimator, …, source_class, target_class) with `mean` and `median`
    over the valid entries, NaN where there are none, `n_valid` how many there were and `n_pairs` of how many.
    Raises `FrameError` for missing columns.
    """
    if isinstance(frame, StoredFrame):
        auto = auto_series(frame.pieces(NEEDED))
        return pd.concat([_smooth(pooled(p, auto), diagonal) for p in frame.pieces(NEEDED)], ignore_index=True)
    check_columns(frame, NEEDED)
    return _smooth(pooled(frame), diagonal)


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
        auto = auto_series(frame.pieces(NEEDED))
        return pd.concat([_separations(pooled(p, auto)) for p in frame.pieces(NEEDED)], ignore_index=True)
    check_columns(frame, NEEDED)
    return _separations(pooled(frame))


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


def pooled(frame, auto=None):
    """The frame with the rows of estimator "auto", which name what gave each of them, under that one label again.

    They are those of a (run, seed, measure, update, η) in which both estimators occur and no source of a step has both:
    two measurements of the same sources, one by `exact` and one by `limit`, stay apart. auto: what `auto_series` gave
    for the whole, where the frame is a piece of one.
    """
    auto = auto_series([frame]) if auto is None else auto
    if not len(auto):
        return frame
    keys = [*SERIES, "learning_rate"]
    is_auto = frame[keys].merge(auto.assign(auto=True), how="left", on=keys)["auto"].notna().to_numpy()
    return frame.assign(estimator=frame["estimator"].astype(object).mask(is_auto, "auto"))


def auto_series(pieces):
    """The (run, seed, measure, update, η) that estimator "auto" measured, of a frame in pieces that cut no measurement.

    An η of its own makes a series only where several were measured at a step: a schedule of the training is one series.
    """
    source = [*SERIES, "step", "epoch", "learning_rate", "source_id"]
    matrix = [*SERIES, "step", "learning_rate", "estimator"]
    found = []
    for piece in pieces:
        estimators = piece[[*source, "estimator"]].drop_duplicates()
        estimators["several"] = estimators.duplicated(source, keep=False)
        found.append(estimators.groupby(matrix, dropna=False, observed=True)["several"].any().reset_index())
    every = pd.concat(found, ignore_index=True)
    at_once = every.groupby([*SERIES, "step"], dropna=False, observed=True)["learning_rate"].transform("nunique")
    at_once = at_once.groupby([every[name] for name in SERIES], dropna=False, observed=True).transform("max")
    every["eta"] = every["learning_rate"].where(at_once > 1, 0.0)
    by_series = every.groupby([*SERIES, "eta"], dropna=False, observed=True)
    is_auto = (by_series["estimator"].transform("nunique") > 1) & ~by_series["several"].transform("any").astype(bool)
    return every.loc[is_auto, [*SERIES, "learning_rate"]].drop_duplicates()


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
