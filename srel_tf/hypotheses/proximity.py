"""Hypothesis 1.1(a): at a fixed x' and time, S_rel(x', x) has a downward trend as x gets farther away from x'."""

import numpy as np
from scipy.stats import rankdata

from srel_tf.errors import FrameError, OptionError
from srel_tf.frames import check_columns
from srel_tf.hypotheses.series import cube, groups
from srel_tf.hypotheses.verdicts import check_confidence, decide, table

TREND = "S_rel falls with distance"
NEARER = "a nearer x_l has a higher S_rel"


def proximity_trend(frame, distances, confidence=0.95, min_sources=20, resamples=500, seed=0):
    """Verdicts on Hypothesis 1.1(a), one a metric, step and claim, and one a metric and claim for all steps together.

    frame: S_rel frame of several seeds (`srel_tf.frames.COLUMNS`).
    distances: columns target_id, source_id, distance; where distances differ, also seed (or run), step, and metric
        (a name, "input" say). Pairs and steps without a distance are left out.
    min_sources: a target with fewer valid sources is left out.
    resamples, seed: of the bootstrap over sources.

    Each effect is one number a seed, the mean over targets x' of

    - "S_rel falls with distance": Spearman's rank correlation of S_rel and distance over the sources x; claimed < 0;
    - "a nearer x_l has a higher S_rel": the share of x_h for which some nearer x_l has one (the nearest x, which has no
      nearer one, left out). Without any trend that share is 1 − 1/(k+1) for an x_h with k nearer ones, 0.98 for 200
      sources: the claim is to be above that, not above one half.

    The interval joins Student's t over seeds with what the choice of the sources adds, which all seeds share: the
    bootstrap over sources for the correlation, for the share its deviation when there is no trend. It says nothing of
    other targets. "at all steps" is the weakest step, its interval widened for their number (Bonferroni).

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
            steps = []
            for step, at_step in joined.groupby("step"):
                effects = _effects(at_step, min_sources, resamples, generator)
                if effects is not None:
                    steps.append((step, effects))
            if steps:
                rows += _verdicts(steps, {**about, "metric": metric}, confidence)
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


def _effects(rows, min_sources, resamples, generator):
    """One step's effects: {claim: (one a seed, bound, standard error that the sources add)}; None without targets."""
    srel, distance = (cube(rows.assign(srel=rows[name])) for name in ("srel", "distance"))
    sources, of_source = np.unique(srel.pairs.get_level_values(0), return_inverse=True)
    targets = srel.pairs.get_level_values(1)
    weights = generator.multinomial(len(sources), np.full(len(sources), 1 / len(sources)), size=resamples)
    trend, share, bound, deviation, resampled = [], [], [], [], []
    for of_seed, far in zip(srel.srel[:, :, 0], distance.srel[:, :, 0], strict=True):
        found = []
        for target in targets.unique():
            known = np.flatnonzero((targets == target) & np.isfinite(of_seed) & np.isfinite(far))
            if len(known) >= min_sources:
                ranks = [rankdata(v[known]) for v in (far, of_seed)]
                found.append(
                    (
                        correlation(*ranks, np.ones((1, len(known))))[0],
                        *nearer_and_higher(far[known], of_seed[known]),
                        correlation(*ranks, weights[:, of_source[known]]),
                    )
                )
        values = [np.mean(v, axis=0) for v in zip(*found, strict=True)] if found else [np.nan] * 5
        for kept, value in zip((trend, share, bound, deviation, resampled), values, strict=True):
            kept.append(value)
    if not np.isfinite(share).any():
        return None
    across = np.mean([r for r in resampled if np.ndim(r)], axis=0)  # Mean over seeds, in each resample.
    across = across[np.isfinite(across)]
    return {
        TREND: (trend, 0.0, across.std() if len(across) else np.nan),
        NEARER: (share, np.nanmean(bound), np.nanmean(deviation)),
    }


def correlation(a, b, weights):
    """Pearson's correlation of a and b [n] with weights [resamples, n]: [resamples], NaN where one is constant."""
    total = weights.sum(axis=1)
    total = np.where(total > 0, total, np.nan)
    a, b = a - a.mean(), b - b.mean()  # Of ranks: nothing is lost in the differences below.
    moments = [weights @ v / total for v in (a, b, a * b, a * a, b * b)]
    mean_a, mean_b, ab, aa, bb = moments
    variance = (aa - mean_a**2) * (bb - mean_b**2)
    return (ab - mean_a * mean_b) / np.sqrt(np.where(variance > 1e-9, variance, np.nan))


def nearer_and_higher(distance, srel):
    """(share of x_h with a nearer x_l of higher S_rel, its expectation and standard deviation without a trend).

    All [n] arrays are of one target. Without a trend all orders of S_rel are equally likely: an x_h with k nearer ones
    is the highest of the k + 1 with probability 1/(k+1), independently of the others (records of a random order).
    """
    order = np.argsort(distance, kind="stable")
    distance, srel = distance[order], srel[order]
    nearer = np.searchsorted(distance, distance, side="left")  # Strictly nearer ones.
    highest = np.maximum.accumulate(srel)
    asked = nearer > 0
    found = highest[nearer[asked] - 1] > srel[asked]
    chance = 1 / (nearer[asked] + 1)
    return found.mean(), 1 - chance.mean(), np.sqrt((chance * (1 - chance)).sum()) / asked.sum()


def _verdicts(steps, about, confidence):
    """A row a step and claim, and one a claim for the weakest step."""
    metric, rows = about.pop("metric"), []
    for claim, effect in (
        (TREND, "mean rank correlation with distance"),
        (NEARER, "share of x_h with a nearer, higher x_l"),
    ):
        verdicts, widened = [], []
        simultaneous = 1 - (1 - confidence) / len(steps)
        for step, effects in steps:
            values, bound, spread = effects[claim]
            names = {**about, "claim": claim, "scope": f"{metric}, step {step:g}", "effect": effect}
            bounds = (-np.inf, bound) if claim == TREND else (bound, np.inf)
            verdicts.append(decide(names, values, bounds, confidence, spread))
            widened.append(decide(names, values, bounds, simultaneous, spread))
        weakest = max(widened, key=lambda row: _weakness(row, claim))
        together = {"scope": f"{metric}, at all {len(steps)} steps", "confidence": confidence}
        rows += [*verdicts, {**weakest, **together}] if len(steps) > 1 else verdicts
    return rows


def _weakness(row, claim):
    """How far the interval reaches on the wrong side; an undecidable step is the weakest of all."""
    reach = row["ci_high"] - row["claim_high"] if claim == TREND else row["claim_low"] - row["ci_low"]
    return reach if np.isfinite(reach) else np.inf
