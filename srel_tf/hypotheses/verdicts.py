"""Verdicts from one effect per seed: the interval over seeds, and the row with the verdict and its reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import t

from srel_tf.errors import OptionError
from srel_tf.frames.schema import with_name
from srel_tf.hypotheses.series import GROUP, median

MIN_SEEDS = 3
COLUMNS = (
    "hypothesis", "claim", "scope", "name", "measure", "update", "estimator", "effect", "effect_size",
    "ci_low", "ci_high", "claim_low", "claim_high", "confidence", "n_seeds", "verdict", "reason",
)  # fmt: skip

Bounds: TypeAlias = tuple[float, float]
Row: TypeAlias = dict[str, Any]  # One row of the table: the types differ by column.


class Claim(NamedTuple):
    """One part of a hypothesis.

    Attributes:
        name: The claim in words.
        effect: Name of the computed quantity, one number per seed.
        bounds: Bounds between which the effect lies according to the claim.
    """

    name: str
    effect: str
    bounds: Bounds


@dataclass(frozen=True)
class Effect:
    """Effect of one claim.

    Attributes:
        claim: The claim.
        of_seeds: One number per seed, [seed].
        shared: Error of the mean that comes from the choice of examples, as in `interval`.
    """

    claim: Claim
    of_seeds: np.ndarray
    shared: Bounds = (0.0, 0.0)

    def row(self, about: Mapping[str, str], confidence: float, reason: str = "") -> Row:
        """Make the row of the claim; `about` (without claim and effect) and `reason` are as in `decide`."""
        names = {**about, "claim": self.claim.name, "effect": self.claim.effect}
        return decide(
            names, self.of_seeds, self.claim.bounds, confidence, self.shared, reason
        )


def check_confidence(confidence: float) -> None:
    """Raise `OptionError` unless 0.5 <= confidence < 1."""
    if not 0.5 <= confidence < 1:
        raise OptionError(
            f"confidence={confidence!r}: give a number >= 0.5 and < 1, for example 0.95"
        )


def interval(
    effects: npt.ArrayLike,
    confidence: float = 0.95,
    shared: Bounds = (0.0, 0.0),
) -> tuple[float, float, float]:
    """Compute the interval of the mean effect, by Student's t over seeds.

    A percentile bootstrap over seeds is not used, because for five values its coverage is far below the nominal level
    (`tests/hypotheses`).

    Args:
        effects: One number per seed, [n].
        confidence: Level of the interval.
        shared: (below, above): how much the choice of examples adds to the error of the mean on each side, as computed
            by `of_permutations`, `of_jackknife` or `of_bootstrap`. All seeds have the same examples, so this error is
            not part of the spread over seeds. It is independent of the error over seeds, so the two errors are added in
            quadrature.

    Returns:
        Mean, low and high; low and high are NaN for one seed.

    Example:
        >>> from srel_tf.hypotheses import interval
        >>> mean, low, high = interval([1.0, 2.0, 3.0])
        >>> print(f"{mean:.2f} ({low:.2f} to {high:.2f})")
        2.00 (-0.48 to 4.48)
    """
    effects = np.asarray(effects, float)
    n = len(effects)
    if n == 0:
        return np.nan, np.nan, np.nan
    mean = effects.mean()
    if n == 1:
        return mean, np.nan, np.nan

    deviation = effects.std(ddof=1)
    half = _student_quantile(confidence, n - 1) * deviation / np.sqrt(n)
    # The error over seeds and the error from the choice of examples are independent.
    below, above = np.hypot(half, shared)
    return mean, mean - below, mean + above


def _student_quantile(confidence: float, degrees: int) -> float:
    """Return the half width of a two-sided interval, in standard errors."""
    return t.ppf((1 + confidence) / 2, degrees)


def of_permutations(draws: np.ndarray, confidence: float) -> Bounds:
    """Estimate by permutations how much the choice of examples adds to the error of a mean effect.

    Without an error over seeds, the interval would be equivalent to a permutation test at level α = (1 − confidence)/2
    on each side. It would exclude the mean of the shuffled values if and only if fewer than a fraction α of the
    shuffled values are more extreme than the effect.

    Args:
        draws: The mean effect with shuffled examples, [resamples].
        confidence: Level of the interval.

    Returns:
        `shared` of `interval`.
    """
    tail = (1 + confidence) / 2
    deviations = draws - np.mean(draws)
    return np.quantile(deviations, tail), -np.quantile(deviations, 1 - tail)


def of_jackknife(draws: np.ndarray, confidence: float) -> Bounds:
    """Estimate by the jackknife how much the choice of examples adds to the error of a mean effect.

    Args:
        draws: The mean effect with each example left out in turn, [n].
        confidence: Level of the interval.

    Returns:
        `shared` of `interval`.
    """
    n = len(draws)
    squares = ((draws - draws.mean()) ** 2).sum()
    half = _student_quantile(confidence, n - 1) * np.sqrt((n - 1) / n * squares)
    return half, half


def of_bootstrap(
    draws: np.ndarray,
    count: int,
    confidence: float,
) -> Bounds:
    """Estimate by the bootstrap how much the choice of examples adds to the error of a mean effect.

    Args:
        draws: The mean effect in resamples of the examples, [resamples]. NaN is ignored.
        count: Number of examples.
        confidence: Level of the interval.

    Returns:
        `shared` of `interval`; NaN if there are fewer than two examples or fewer than two draws.
    """
    draws = draws[np.isfinite(draws)]
    if count < 2 or len(draws) < 2:
        return np.nan, np.nan
    # The variance over resamples of n examples is too small by the factor (n - 1)/n. Student's t is used because the
    # variance is estimated with n - 1 degrees of freedom.
    correction = np.sqrt(count / (count - 1))
    quantile = _student_quantile(confidence, count - 1)
    half = quantile * draws.std(ddof=1) * correction
    return half, half


def decide(
    about: Mapping[str, str],
    effects: npt.ArrayLike,
    claim: Bounds,
    confidence: float = 0.95,
    shared: Bounds = (0.0, 0.0),
    reason: str = "",
) -> Row:
    """Make one row of the verdict table from one effect per seed.

    The verdict is "supported" if the whole interval fulfils the claim, "contradicted" if no part of it does, and
    "undecided" otherwise.

    If the effects of all n seeds are equal, the interval has no width, and would lead to a verdict however small n is.
    But if the true median of the effect is equal to a bound, all n effects lie above the bound with probability 2^−n,
    just by chance. If this probability is above (1 − confidence)/2, the verdict is "undecided".

    Args:
        about: Values of the columns hypothesis, claim, scope, name, measure, update, estimator and effect.
        effects: One number per seed. Seeds whose effect is not finite are left out.
        claim: (low, high), where the hypothesis is low < effect < high.
        confidence: Level of the interval.
        shared: As in `interval`.
        reason: Reason why the claim cannot be decided, or "".

    Returns:
        Dict of `COLUMNS`.

    Example:
        >>> import numpy as np
        >>> from srel_tf.hypotheses import decide
        >>> about = {"hypothesis": "mine", "claim": "the effect is positive"}
        >>> row = decide(about, [0.9, 1.0, 1.1], claim=(0.0, np.inf))
        >>> row["verdict"], row["reason"]
        ('supported', 'the whole interval is within (0, inf)')
    """
    given = np.asarray(effects, float)
    usable = given[np.isfinite(given)]
    mean, ci_low, ci_high = interval(usable, confidence, shared)
    reason = reason or _why_undecided(usable, len(given), (ci_low, ci_high), confidence)
    verdict = "undecided"
    if not reason:
        verdict, reason = _compare((ci_low, ci_high), claim)
    return {
        **about,
        "effect_size": mean,
        "ci_low": ci_low,
        "ci_high": ci_high,
        "claim_low": claim[0],
        "claim_high": claim[1],
        "confidence": confidence,
        "n_seeds": len(usable),
        "verdict": verdict,
        "reason": reason,
    }


def _why_undecided(
    usable: np.ndarray,
    n_given: int,
    ci: Bounds,
    confidence: float,
) -> str:
    """Return the reason why the effects of the usable seeds, [n], allow no verdict, or ""."""
    n = len(usable)
    if n < MIN_SEEDS:
        return _too_few(n, n_given)
    error_rate = (1 - confidence) / 2
    are_equal = np.ptp(usable) == 0
    if are_equal and 0.5**n > error_rate:
        return f"the effect is equal in all {n} seeds: so few seeds do not show how much it can vary"
    if not np.isfinite(ci).all():
        return "too few examples for an interval"
    return ""


def _compare(ci: Bounds, claim: Bounds) -> tuple[str, str]:
    """Return verdict and reason from an interval and the bounds of a claim."""
    ci_low, ci_high = ci
    low, high = claim
    bounds = f"({low:.3g}, {high:.3g})"
    is_inside = low < ci_low and ci_high < high
    is_outside = ci_high < low or ci_low > high
    is_point_on_bound = ci_low == ci_high and ci_low in claim
    if is_inside:
        return "supported", f"the whole interval is within {bounds}"
    if is_outside or is_point_on_bound:
        return "contradicted", f"the whole interval is outside {bounds}"
    return "undecided", f"the interval reaches across the bounds of {bounds}"


def rows_of_median_pair(
    about: Mapping[str, str],
    claims: Sequence[Claim],
    of_seeds: Sequence[Mapping[Claim, np.ndarray] | None],
    n_pairs: int,
    confidence: float,
    reason: str = "",
) -> list[Row]:
    """Make one row per claim on the median over pairs.

    The scope of each row says for how many pairs the median over seeds agrees with the claim.

    Args:
        about: As in `decide`, without claim and effect.
        claims: The claims.
        of_seeds: {claim: effect of each pair, [pair]} of each seed; None for a seed that cannot be judged.
        n_pairs: Number of pairs.
        confidence: Level of the interval.
        reason: As in `decide`.

    Returns:
        The rows.
    """
    unknown = np.full(n_pairs, np.nan)
    rows = []
    for claim in claims:
        of_claim = [unknown if seed is None else seed[claim] for seed in of_seeds]
        effects = np.array(of_claim)  # [seed, pair]
        of_pairs = median(effects.T)
        low, high = claim.bounds
        n_agreeing = ((of_pairs > low) & (of_pairs < high)).sum()
        scope = f"{about['scope']}; {n_agreeing} of {n_pairs} pairs"
        claim_on_median = claim._replace(name=f"{claim.name}, median pair")
        effect = Effect(claim_on_median, median(effects))
        rows.append(effect.row({**about, "scope": scope}, confidence, reason))
    return rows


def undecided(
    frame: pd.DataFrame,
    hypothesis: str,
    claim: str,
    reason: str,
) -> pd.DataFrame:
    """Make a table of undecided rows for a claim that cannot be checked on the frame.

    Args:
        frame: Columns measure, update, estimator and, if probes have names, `name`.
        hypothesis: Name of the hypothesis.
        claim: The claim.
        reason: Which data the frame lacks.

    Returns:
        One row per probe, measure, update rule and estimator, with the columns `COLUMNS`.

    Example:
        >>> import pandas as pd
        >>> from srel_tf.hypotheses import undecided
        >>> frame = pd.DataFrame({"measure": ["kl"], "update": ["sgd"], "estimator": ["exact"]})
        >>> table = undecided(frame, "1.2", "two phases", "the frame has one step")
        >>> table[["measure", "verdict", "reason"]].values.tolist()
        [['kl', 'undecided', 'the frame has one step']]
    """
    keys = with_name(frame)[GROUP].drop_duplicates().to_dict("records")
    names = {"hypothesis": hypothesis, "claim": claim, "scope": "", "effect": ""}
    rows = [
        decide({**names, **key}, [], (np.nan, np.nan), reason=reason) for key in keys
    ]
    return table(rows)


def seeds(count: int) -> str:
    """Return the number of seeds in words: "1 seed", "2 seeds"."""
    return f"{count} seed{'' if count == 1 else 's'}"


def _too_few(n_usable: int, n_given: int) -> str:
    """Return the reason to give if there are fewer than `MIN_SEEDS` seeds."""
    if n_given < MIN_SEEDS:
        return f"{seeds(n_given)}: an interval over seeds needs {MIN_SEEDS}"
    return f"{n_usable} of {seeds(n_given)} can be judged: an interval over seeds needs {MIN_SEEDS}"


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """Arrange rows as a tidy frame of `COLUMNS`."""
    return pd.DataFrame(rows, columns=list(COLUMNS))
