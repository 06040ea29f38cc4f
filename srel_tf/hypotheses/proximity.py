"""Hypothesis 1.1(a): at a fixed x' and time, S_rel(x', x) has a downward trend as x gets farther away from x'."""

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from srel_tf.errors import FrameError, OptionError
from srel_tf.frames.schema import check_columns
from srel_tf.hypotheses.series import cube, groups
from srel_tf.hypotheses.verdicts import check_confidence, decide, of_permutations, table

TREND = "S_rel falls with distance"
NEARER = "a nearer x_l has a higher S_rel, more often than by chance"


def proximity_trend(frame, distances, confidence=0.95, min_sources=20, resamples=1000, seed=0):
    """Verdicts on Hypothesis 1.1(a), one a metric, step and claim, and one a metric and claim for all steps together.

    frame: S_rel frame of several seeds (`srel_tf.frames.COLUMNS`).
    distances: columns target_id, source_id, distance; where distances differ, also seed (or run), step, and metric
        (a name, "input" say). Pairs and steps without a distance are left out.
    min_sources: a target with fewer valid sources is left out.
    resamples, seed: of the permutations of the sources.

    Each effect is one number a seed, the mean over targets x' of

    - "S_rel falls with distance": Spearman's rank correlation of S_rel and distance over the sources x; claimed < 0;
    - "a nearer x_l has a higher S_rel": the share of x_h for which some nearer x_l has one (the nearest x, which has no
      nearer one, left out); `effect` says how many have none. The hypothesis has it of all x_h, but also of all x in
      ℝⁿ: a finite set of points cannot refute that. What can be asked is whether the share is above that of sources
      without a trend, 1 − mean 1/(k+1) over the numbers k of nearer ones: 0.975 for 200 sources.

    All seeds share the sources. So the interval joins Student's t over seeds with the permutations of the sources,
    alike in all seeds and for all targets: an effect must be beyond what both leave to chance. It says nothing of other
    targets. "at all steps" is supported where every step is, which needs no wider intervals, and contradicted where one
    step is with an interval widened for their number (Bonferroni); else it shows the least favourable step.

    Returns a frame of `srel_tf.hypotheses.COLUMNS`; "undecided" for less than 3 seeds or `min_sources`.
    Raises `FrameError` for frames or distances that do not fit, `OptionError` for options that do not.
    """
    check_confidence(confidence)
    if min_sources < 3 or resamples < 100:
        raise OptionError(f"min_sources={min_sources}, resamples={resamples}: give at least 3 and 100")
    check_columns(distances, ["target_id", "source_id", "distance"])
    if not (distances["distance"].astype(float) >= 0).all():
        raise FrameError("distances must be numbers, none of them negative or missing")
    if "metric" not in distances:
        distances = distances.assign(metric="distance")
    rows, generator = [], np.random.default_rng(seed)
    for key, part in groups(frame):
        for metric, of_metric in distances.groupby("metric", sort=False):
            about = {"hypothesis": "1.1(a)", **key}
            joined = join(part, of_metric, "distance")
            steps = [(step, _effects(at, min_sources, resamples, generator)) for step, at in joined.groupby("step")]
            steps = [(step, effects) for step, effects in steps if effects is not None]
            if steps:
                for claim in (TREND, NEARER):
                    of_claim = [(step, effects[claim]) for step, effects in steps]
                    rows += _verdicts(of_claim, {**about, "claim": claim}, metric, confidence)
            else:
                empty = {**about, "claim": TREND, "scope": f"{metric}", "effect": ""}
                reason = f"no target has {min_sources} valid sources at any step"
                rows.append(decide(empty, [], (-np.inf, 0.0), confidence, reason=reason))
    return table(rows)


def join(part, values, column):
    """Rows of a group with `column` of `values`, matched by all identifying columns that `values` has.

    `FrameError` where a pair has several values or no pair has one.
    """
    on = [name for name in ("run", "seed", "step", "source_id", "target_id") if name in values]
    if values.duplicated(on).any():
        raise FrameError(f"{values.duplicated(on).sum()} pairs have a second {column}, told apart by {on}")
    # Numbers compare as numbers: the nullable integers of a frame and those of NumPy are not merged.
    types = {name: float for name in on if name in ("seed", "step")}
    joined = part.astype(types).merge(values[[*on, column]].astype(types), on=on)
    if joined.empty:
        raise FrameError(f"no row of the frame has a {column}: source_id, target_id and step must agree in both")
    return joined


class Effect(NamedTuple):
    """Of a claim at one step: one number a seed, their mean in each permutation [resamples], bounds, a name."""

    of_seeds: list
    shuffled: np.ndarray
    bounds: tuple
    name: str


def _effects(rows, min_sources, resamples, generator):
    """{claim: `Effect`} of one step; None where no target has enough sources."""
    srel, distance = (by_source(rows, name) for name in ("srel", "distance"))
    orders = generator.permuted(np.tile(np.arange(srel.shape[2]), (resamples, 1)), axis=1)
    trend, nearer, shuffled = [], [], []
    for of_seed, far in zip(srel, distance, strict=True):
        found = []
        for values, metres in zip(of_seed, far, strict=True):
            if (np.isfinite(values) & np.isfinite(metres)).sum() >= min_sources:
                found.append([f(metres, values[o]) for f in (correlation, higher) for o in (slice(None), orders)])
        if found:
            rank, ranks, share, shares = (np.mean(v, axis=0) for v in zip(*found, strict=True))
            shuffled.append((ranks, shares[:, 0]))
        else:
            rank, share = np.nan, (np.nan, np.nan)
        trend.append(rank)
        nearer.append(share)
    if not shuffled:
        return None
    ranks, shares = np.mean(shuffled, axis=0)
    share, without = np.array(nearer).T
    name = f"share of x_h with a nearer, higher x_l; {np.nanmean(without):.3g} of a target's x_h have none"
    return {
        TREND: Effect(trend, ranks, (-np.inf, 0.0), "mean rank correlation with distance"),
        NEARER: Effect(share, shares, (shares.mean(), np.inf), name),
    }


def by_source(rows, name):
    """Column `name` as [seed, target, source], NaN where there is no row."""
    whole = cube(rows.assign(srel=rows[name]))
    source, sources = whole.pairs.get_level_values(0).factorize()
    target, targets = whole.pairs.get_level_values(1).factorize()
    found = np.full((len(whole.seeds), len(targets), len(sources)), np.nan)
    found[:, target, source] = whole.srel[:, :, 0]
    return found


def correlation(distance, srel):
    """Spearman's rank correlation of distance [n] and each row of srel [..., n], over the entries that both have.

    Of rows that are permutations of each other: they are ranked once, and a missing entry of a shuffled row has the
    middle rank. NaN where one is constant.
    """
    rows = np.atleast_2d(srel)
    if srel.ndim == 1:
        distance = np.where(np.isfinite(srel), distance, np.nan)
        rows = np.where(np.isfinite(distance), rows, np.nan)
    a, b = _centred_ranks(distance[None])[0], _centred_ranks(rows)
    size = np.sqrt((a**2).sum() * (b**2).sum(axis=1))
    found = b @ a / np.where(size > 0, size, np.nan)
    return found if srel.ndim > 1 else found[0]


def _centred_ranks(rows):
    """Ranks in each row less their mean; 0 for NaN."""
    known = np.isfinite(rows)
    ranks = rankdata(np.where(known, rows, np.inf), axis=1)
    return np.where(known, ranks - (known.sum(axis=1, keepdims=True) + 1) / 2, 0)


def higher(distance, srel):
    """(share of x_h with a nearer x_l of higher S_rel, number of those without) [..., 2]; srel [..., n], one target."""
    order = np.argsort(distance, kind="stable")
    order = order[np.isfinite(distance[order])]
    distance, srel = distance[order], srel[..., order]
    nearer = np.searchsorted(distance, distance, side="left")  # Strictly nearer ones.
    highest = np.maximum.accumulate(np.where(np.isfinite(srel), srel, -np.inf), axis=-1)[..., nearer - 1]
    asked = (nearer > 0) & np.isfinite(srel) & np.isfinite(highest)
    without = (asked & ~(highest > srel)).sum(axis=-1)
    return np.stack([1 - without / np.maximum(asked.sum(axis=-1), 1), without], axis=-1)


def _verdicts(steps, about, metric, confidence):
    """A row a step, and one for all of them."""
    rows, widened = (
        [
            decide({**about, "scope": f"{metric}, step {step:g}", "effect": e.name}, e.of_seeds, e.bounds, level,
                   of_permutations(e.shuffled, level))
            for step, e in steps
        ]
        for level in (confidence, 1 - (1 - confidence) / len(steps))
    )  # fmt: skip
    for row in [*rows, *widened]:
        least, most = (-1.0, 1.0) if about["claim"] == TREND else (0.0, 1.0)
        row["ci_low"], row["ci_high"] = np.clip([row["ci_low"], row["ci_high"]], least, most)
    if len(steps) == 1:
        return rows
    worst = max(range(len(rows)), key=lambda i: _against(rows[i], about["claim"]))
    contrary = [row for row in widened if row["verdict"] == "contradicted"]
    together = max(contrary, key=lambda row: _against(row, about["claim"])) if contrary else rows[worst]
    reason = f"{together['scope'].removeprefix(metric + ', ')}: {together['reason']}"
    if together["verdict"] == "supported" and any(row["verdict"] != "supported" for row in rows):
        together, reason = {**together, "verdict": "undecided"}, "not every step is supported"
    if together["verdict"] == "contradicted" and not contrary:
        together = {**together, "verdict": "undecided"}
        reason = f"contradicted at one of {len(steps)} steps alone, not with intervals widened for their number"
    return [*rows, {**together, "scope": f"{metric}, at all {len(steps)} steps", "reason": reason}]


def _against(row, claim):
    """How unfavourable a step's effect is; one without an effect most of all."""
    effect = row["effect_size"] if claim == TREND else row["claim_low"] - row["effect_size"]
    return effect if np.isfinite(effect) else np.inf
