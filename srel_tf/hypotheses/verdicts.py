"""From one effect a seed to a verdict: the interval over seeds, and the row that says what was decided and why."""

import numpy as np
import pandas as pd
from scipy.stats import norm, t

from srel_tf.errors import OptionError

MIN_SEEDS = 3
COLUMNS = (
    "hypothesis", "claim", "scope", "measure", "update", "estimator", "effect", "effect_size", "ci_low", "ci_high",
    "claim_low", "claim_high", "confidence", "n_seeds", "verdict", "reason",
)  # fmt: skip


def check_confidence(confidence):
    """`OptionError` unless 0.5 <= confidence < 1."""
    if not 0.5 <= confidence < 1:
        raise OptionError(f"confidence={confidence!r}: give a number from 0.5 to 1, say 0.95")


def interval(effects, confidence=0.95, spread=0.0):
    """(mean, low, high) of one effect a seed, by Student's t over seeds.

    Not a percentile bootstrap over seeds: of five values it covers far less than it says (`tests/hypotheses`). `spread`
    is the standard error that comes from the sampled examples, which all seeds share; it widens the interval.
    (NaN, NaN) for one seed.
    """
    effects = np.asarray(effects, float)
    n, mean = len(effects), effects.mean() if len(effects) else np.nan
    if n < 2:
        return mean, np.nan, np.nan
    tail = (1 + confidence) / 2
    half = np.hypot(t.ppf(tail, n - 1) * effects.std(ddof=1) / np.sqrt(n), norm.ppf(tail) * spread)
    return mean, mean - half, mean + half


def decide(about, effects, claim, confidence=0.95, spread=0.0, reason=""):
    """One row of the verdict table (a dict of `COLUMNS`) from one effect a seed.

    about: the columns hypothesis, claim, scope, measure, update, estimator, effect.
    effects: one number a seed; NaN where a seed says nothing, which leaves it out.
    claim: (low, high), what the hypothesis says about the effect: low < effect < high.
    reason: why nothing can be decided, if it is known already.

    "supported" where the whole interval fulfils the claim, "contradicted" where none of it does, else "undecided".
    """
    given, effects = len(effects), np.asarray([e for e in effects if np.isfinite(e)], float)
    low, high = claim
    mean, ci_low, ci_high = interval(effects, confidence, spread)
    if reason or len(effects) < MIN_SEEDS:
        verdict = "undecided"
        reason = reason or _too_few(len(effects), given)
    elif low < ci_low and ci_high < high:
        verdict, reason = "supported", f"the whole interval is within ({low:.3g}, {high:.3g})"
    elif ci_high < low or ci_low > high or ci_low == ci_high in (low, high):
        verdict, reason = "contradicted", f"the whole interval is outside ({low:.3g}, {high:.3g})"
    else:
        verdict, reason = "undecided", f"the interval reaches across the bounds of ({low:.3g}, {high:.3g})"
    numbers = {"effect_size": mean, "ci_low": ci_low, "ci_high": ci_high, "claim_low": low, "claim_high": high}
    rest = {"confidence": confidence, "n_seeds": len(effects), "verdict": verdict, "reason": reason}
    return {**about, **numbers, **rest}


def _too_few(usable, given):
    seeds = f"{usable} seed{'' if usable == 1 else 's'}"
    if usable < given:
        seeds += f" of {given} with enough valid entries"
    return f"{seeds}: an interval over seeds needs {MIN_SEEDS}"


def table(rows):
    """The rows as a tidy frame of `COLUMNS`."""
    return pd.DataFrame(rows, columns=list(COLUMNS))
