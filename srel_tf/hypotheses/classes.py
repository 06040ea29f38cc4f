"""The claim on classifiers (Sections 1.3 and 2.1): intra-class S^{k,smooth} is above inter-class, and constant."""

import warnings

import numpy as np
import pandas as pd

from srel_tf.errors import FrameError
from srel_tf.hypotheses.series import NEGLIGIBLE, cube, groups, log2, slopes
from srel_tf.hypotheses.verdicts import check_confidence, decide, of_bootstrap, table

CONSTANT = 0.5  # In log₂: "relatively constant" means a change by less than a factor of √2 over the training.
MIN_STEPS, MIN_EXAMPLES = 3, 8
CLAIMS = (
    ("intra above inter at (almost) all times", "5% quantile of log₂ (intra / inter)", (0.0, np.inf)),
    ("intra above inter", "log₂ (intra / inter), mean over class pairs and steps", (NEGLIGIBLE, np.inf)),
    ("intra constant in time", "log₂ change of intra over the measured span", (-CONSTANT, CONSTANT)),
    ("inter decreasing", "log₂ change of inter over the measured span", (-np.inf, -NEGLIGIBLE)),
    ("inter decreases more than intra", "log₂ change of inter minus that of intra", (-np.inf, -NEGLIGIBLE)),
)  # fmt: skip


def class_claim(frame, confidence=0.95, diagonal=False, resamples=200, seed=0):
    """Verdicts on the classification claim, one a measure, update rule, estimator and part of the claim.

    frame: S_rel frame of several seeds with classes (`srel_tf.frames.COLUMNS`); S^{k,smooth} is `srel_tf.smooth`'s.
    diagonal: whether the pairs of an example with itself count. They do in the paper's Definition 3, and are 1 whatever
        the net does: they alone lift intra above inter where S_rel < 1. Left out by default.
    resamples, seed: of the bootstrap over examples.

    Each effect is one number a seed: for a source class c, intra is S(c, c), inter S(c', c) for each other class c'.
    A class mean of which less than half of the entries are valid counts as missing. Changes are least-squares slopes
    of log₂ S^{k,smooth} times the measured span, mean over classes; the bounds stand in `claim_low`, `claim_high`.

    The interval joins Student's t over seeds with the bootstrap over examples within their classes: an example that
    several seeds measured has one weight in all of them, as source and as target.

    Returns a frame of `srel_tf.hypotheses.COLUMNS`; "undecided" for less than 3 seeds or 3 steps, or a class of less
    than 8 examples. Raises `FrameError` for frames that do not fit or have less than two classes.
    """
    check_confidence(confidence)
    rows, generator = [], np.random.default_rng(seed)
    for key, _ in groups(frame):
        # `groups` leaves the diagonal out and checks the rest; where it counts, it is put back.
        part = frame[(frame[list(key)] == list(key.values())).all(axis=1)]
        if not diagonal:
            part = part[part["source_id"] != part["target_id"]]
        part = part.assign(
            replicate=part["run"].astype(str) + "/" + part["seed"].astype("string").fillna(""),
            srel=part["srel"].where(part["valid"].eq(True).fillna(False)).replace([np.inf, -np.inf], np.nan),
        )
        class_of = _classes(part)
        names, counts = np.unique(class_of.to_numpy(str), return_counts=True)
        about = {"hypothesis": "classification", **key, "scope": f"{len(names)} classes"}
        effects, draws = _effects(part, class_of, resamples, generator)
        few = f"a class has {counts.min()} examples: {MIN_EXAMPLES} are needed" if counts.min() < MIN_EXAMPLES else ""
        for i, (claim, effect, bounds) in enumerate(CLAIMS):
            shared = of_bootstrap(draws[:, i], int(counts.min()), confidence)
            names_of = {**about, "claim": claim, "effect": effect}
            rows.append(decide(names_of, effects[:, i], bounds, confidence, shared, reason=few))
    return table(rows)


def _classes(part):
    """Class of each example id, a series; `FrameError` where one has none or two."""
    ends = [part[[f"{end}_id", f"{end}_class"]].set_axis(["id", "class"], axis=1) for end in ("source", "target")]
    named = pd.concat(ends).drop_duplicates()
    empty = named["class"].isna() | (named["class"].astype(str) == "")
    if empty.any() or part["source_class"].nunique() < 2:
        raise FrameError("the claim compares classes: source_class must name at least two, and none may be empty")
    twice = named["id"].duplicated()
    if twice.any():
        raise FrameError(f"example {named.loc[twice, 'id'].iloc[0]!r} belongs to two classes")
    return named.set_index("id")["class"].sort_index(key=lambda ids: ids.astype(str))


def _effects(part, class_of, resamples, generator):
    """The effects [seed, claim], and their mean over seeds in each resample of the examples [resamples, claim]."""
    ids, codes = class_of.index, np.unique(class_of.to_numpy(str), return_inverse=True)[1]
    weights = np.ones((1 + resamples, len(ids)))  # The first row: every example once.
    for c in range(codes.max() + 1):
        members = np.flatnonzero(codes == c)
        weights[1:, members] = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), resamples)
    by_class = weights[:, None] * (codes == np.arange(codes.max() + 1)[:, None])  # [draw, class, example]
    found = []
    for _, run in part.groupby("replicate"):
        whole = cube(run)
        source, target = (ids.get_indexer(whole.pairs.get_level_values(i)) for i in (0, 1))
        logs = np.stack([
            _class_means(whole.srel[0, :, i], whole.measured[0, :, i], source, target, by_class)
            for i in range(len(whole.steps))
        ], axis=-1)  # fmt: skip
        found.append(_effects_of_run(logs, whole.steps))
    found = np.array(found)
    judged = np.isfinite(found[:, 0])  # A seed without an effect is in no draw either.
    drawn = np.where(judged[:, None], found[:, 1:], 0).sum(axis=0) / np.maximum(judged.sum(axis=0), 1)
    return found[:, 0], drawn


def _class_means(srel, measured, source, target, by_class):
    """Log₂ S^{k,smooth} [draw, source class, target class]; NaN where less than half of the entries are valid."""
    n, valid = by_class.shape[2], np.isfinite(srel)
    total, of_valid, of_all = (
        by_class @ _matrix(values, source, target, n) @ by_class.transpose(0, 2, 1)
        for values in (np.where(valid, srel, 0), valid, measured)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return log2(np.where((of_valid > 0) & (of_valid >= of_all / 2), total / of_valid, np.nan))


def _matrix(values, source, target, n):
    found = np.zeros((n, n))
    found[source, target] = values
    return found


def _effects_of_run(logs, steps):
    """The five effects of one seed, log₂ S^{k,smooth} [draw, source class, target class, step]: [draw, claim]."""
    same = np.eye(logs.shape[1], dtype=bool)
    intra = logs[:, same]  # [draw, class, step]
    gaps = (intra[:, :, None] - logs)[:, ~same].reshape(len(logs), -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # Without any gap, or any curve.
        changes = [_change(curves, steps) for curves in (intra, logs[:, ~same])]
        quantile = (np.nanquantile if np.isnan(gaps).any() else np.quantile)(gaps, 0.05, axis=1)
        return np.stack([quantile, np.nanmean(gaps, axis=1), *changes, changes[1] - changes[0]], axis=1)


def _change(curves, steps):
    """Mean over curves [draw, curve, step] of slope times span; NaN where none has three steps."""
    known = np.isfinite(curves)
    curves = np.where(known.sum(axis=2, keepdims=True) >= MIN_STEPS, curves, np.nan)
    span = np.where(known, steps, -np.inf).max(axis=2) - np.where(known, steps, np.inf).min(axis=2)
    return np.nanmean(slopes(curves, np.broadcast_to(steps, curves.shape)) * span, axis=1)
