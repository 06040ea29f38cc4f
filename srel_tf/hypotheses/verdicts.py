"""From one effect a seed to a verdict: the interval over seeds, and the row that says what was decided and why."""

import numpy as np
import pandas as pd
from scipy.stats import t

from srel_tf.errors import OptionError
from srel_tf.hypotheses.series import median

MIN_SEEDS = 3
COLUMNS = (
    "hypothesis", "claim", "scope", "measure", "update", "estimator", "effect", "effect_size", "ci_low", "ci_high",
    "claim_low", "claim_high", "confidence", "n_seeds", "verdict", "reason",
)  # fmt: skip


def check_confidence(confidence):
    """`OptionError` unless 0.5 <= confidence < 1."""
    if not 0.5 <= confidence < 1:
        raise OptionError(f"confidence={confidence!r}: give a number from 0.5 to 1, say 0.95")


def interval(effects, confidence=0.95, shared=(0.0, 0.0)):
    """(mean, low, high) of one effect a seed, by Student's t over seeds.

    Not a percentile bootstrap over seeds: of five values it covers far less than it says (`tests/hypotheses`).
    shared: what the sampled examples, which all seeds share, add below and above the mean (`of_permutations`,
    `of_jackknife`, `of_bootstrap`); the two errors are independent and add in squares. (NaN, NaN) for one seed.
    """
    effects = np.asarray(effects, float)
    n, mean = len(effects), effects.mean() if len(effects) else np.nan
    if n < 2:
        return mean, np.nan, np.nan
    half = t.ppf((1 + confidence) / 2, n - 1) * effects.std(ddof=1) / np.sqrt(n)
    return mean, mean - np.hypot(half, shared[0]), mean + np.hypot(half, shared[1])


def of_permutations(draws, confidence):
    """`shared` of a mean effect from its values `draws` when the examples are shuffled.

    The interval then leaves the mean of the shuffled values out if, and only if, less than (1 − confidence)/2 of them
    lie beyond the effect.
    """
    tail, deviations = (1 + confidence) / 2, draws - np.mean(draws)
    return np.quantile(deviations, tail), -np.quantile(deviations, 1 - tail)


def of_jackknife(draws, confidence):
    """`shared` of a mean effect from its values `draws` with each example left out in turn."""
    n = len(draws)
    half = t.ppf((1 + confidence) / 2, n - 1) * np.sqrt((n - 1) / n * ((draws - draws.mean()) ** 2).sum())
    return half, half


def of_bootstrap(draws, count, confidence):
    """`shared` of a mean effect from its values `draws` in resamples of `count` examples; NaN for one example."""
    draws = draws[np.isfinite(draws)]
    if count < 2 or len(draws) < 2:
        return np.nan, np.nan
    # A resample of n varies by (n - 1)/n of the variance, and that is known from n examples only.
    half = t.ppf((1 + confidence) / 2, count - 1) * draws.std(ddof=1) * np.sqrt(count / (count - 1))
    return half, half


def decide(about, effects, claim, confidence=0.95, shared=(0.0, 0.0), reason=""):
    """One row of the verdict table (a dict of `COLUMNS`) from one effect a seed.

    about: the columns hypothesis, claim, scope, measure, update, estimator, effect.
    effects: one number a seed; NaN where a seed says nothing, which leaves it out.
    claim: (low, high), what the hypothesis says about the effect: low < effect < high.
    shared: as in `interval`. reason: why nothing can be decided, if it is known already.

    "supported" where the whole interval fulfils the claim, "contradicted" where none of it does, else "undecided".
    Effects that are the same in all seeds have no spread to make an interval of: what is left is that they all lie on
    one side, which chance alone does with probability 2^−n.
    """
    given, effects = len(effects), np.asarray([e for e in effects if np.isfinite(e)], float)
    (low, high), n = claim, len(effects)
    mean, ci_low, ci_high = interval(effects, confidence, shared)
    verdict = "undecided"
    if reason or n < MIN_SEEDS:
        reason = reason or _too_few(n, given)
    elif np.ptp(effects) == 0 and 0.5**n > (1 - confidence) / 2:
        reason = f"the same in all {n} seeds: that says nothing of how much seeds differ"
    elif not (np.isfinite(ci_low) and np.isfinite(ci_high)):
        reason = "too few examples for an interval"
    elif low < ci_low and ci_high < high:
        verdict, reason = "supported", f"the whole interval is within ({low:.3g}, {high:.3g})"
    elif ci_high < low or ci_low > high or ci_low == ci_high in (low, high):
        verdict, reason = "contradicted", f"the whole interval is outside ({low:.3g}, {high:.3g})"
    else:
        reason = f"the interval reaches across the bounds of ({low:.3g}, {high:.3g})"
    numbers = {"effect_size": mean, "ci_low": ci_low, "ci_high": ci_high, "claim_low": low, "claim_high": high}
    rest = {"confidence": confidence, "n_seeds": n, "verdict": verdict, "reason": reason}
    return {**about, **numbers, **rest}


def of_median_pair(about, effects, bounds, confidence, reason=""):
    """The row on the median over pairs of effects [seed, pair]; its scope says how many pairs agree."""
    of_pairs = median(np.swapaxes(effects, 0, 1))
    agree = int(((of_pairs > bounds[0]) & (of_pairs < bounds[1])).sum())
    about = {**about, "claim": about["claim"] + ", median pair"}
    about["scope"] += f"; {agree} of {effects.shape[1]} pairs"
    return decide(about, median(effects), bounds, confidence, reason=reason)


def undecided(frame, hypothesis, claim, reason):
    """A table of one undecided row a measure, update rule and estimator: what the frame lacks data for."""
    keys = frame[["measure", "update", "estimator"]].drop_duplicates().to_dict("records")
    names = {"hypothesis": hypothesis, "claim": claim, "scope": "", "effect": ""}
    return table([decide({**names, **key}, [], (np.nan, np.nan), reason=reason) for key in keys])


def seeds(count):
    return f"{count} seed{'' if count == 1 else 's'}"


def _too_few(usable, given):
    if given < MIN_SEEDS:
        return f"{seeds(given)}: an interval over seeds needs {MIN_SEEDS}"
    return f"{usable} of {seeds(given)} can be judged: an interval over seeds needs {MIN_SEEDS}"


def table(rows):
    """The rows as a tidy frame of `COLUMNS`."""
    return pd.DataFrame(rows, columns=list(COLUMNS))
