"""Hypothesis 1.1(b): S_rel(x, x') = O(P(x, x')) for a symmetric, time-independent P."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from srel_tf.errors import FrameError
from srel_tf.frames.schema import check_columns
from srel_tf.hypotheses.pair_values import join
from srel_tf.hypotheses.series import (
    FALL,
    NEGLIGIBLE,
    Cube,
    cube,
    groups,
    log2,
    selected,
    slopes,
)
from srel_tf.hypotheses.verdicts import (
    MIN_SEEDS,
    Claim,
    Effect,
    Row,
    check_confidence,
    of_jackknife,
    table,
)

MIN_SOURCES = 20
RISES, AS_FAST, IN_TIME = (
    "S_rel rises with P",
    "S_rel = O(P): falls with P as fast as P",
    "max S_rel/P does not grow",
)
ALPHA = "slope of log S_rel (highest in time) on log P"
CLAIMS = {
    RISES: Claim(RISES, ALPHA, (NEGLIGIBLE, np.inf)),
    AS_FAST: Claim(AS_FAST, ALPHA, (0.9, np.inf)),
    IN_TIME: Claim(
        IN_TIME,
        "log₂ change of max S_rel/P over pairs, second half of the time",
        (-np.inf, FALL),
    ),
}


@dataclass(frozen=True)
class _UsedPairs:
    """Pairs from which the exponent α of S_rel ~ P^α is estimated.

    Attributes:
        log_p: Log₂ P, [pair].
        logs: Log₂ of the highest S_rel in time, [seed, pair].
        source: Index of the source of each pair, [pair].
        n_sources: Number of different sources.
    """

    log_p: np.ndarray
    logs: np.ndarray
    source: np.ndarray
    n_sources: int


def bounded_by_proximity(
    frame: pd.DataFrame,
    proximity: pd.DataFrame,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Check Hypothesis 1.1(b) for a model whose P is known (`HomogeneousPredictor.proximity`, Theorem 5.1).

    For any finite set of pairs with P > 0, S_rel <= C·P holds at all measured times with C = max S_rel/P. This C is
    given in the column `scope`. The data can show whether one C is sufficient down to low P, and whether it remains
    sufficient late in training. Each effect is one number per seed:

    - α is the exponent in S_rel ~ P^α. It is estimated as the least-squares slope of log S_rel on log P over pairs,
      where S_rel of a pair is its highest value in time. The claim "S_rel rises with P" is α > 0. The claim
      "S_rel = O(P)" is α >= 1, because S_rel/P then stays bounded as P falls. The check has a tolerance
      of 0.1: it tests α > 0.9. Whatever α is, "S_rel = O(P)" is contradicted if at least three seeds were measured and
      a pair with P = 0 has S_rel > 0 in every seed.
    - The claim "max S_rel/P does not grow" is that this maximum grows by less than a tenth over the second half of the
      time.

    The interval of α combines Student's t over seeds with a jackknife over the sources, because all seeds have the same
    sources. The jackknife leaves out each source together with all its pairs. The interval says nothing about other
    targets. The claim on growth is about the given pairs only. The verdict is "undecided" if there are fewer than 3
    seeds or fewer than 20 sources.

    Args:
        frame: S_rel frame of several seeds (`srel_tf.frames.COLUMNS`).
        proximity: Columns target_id, source_id, proximity. P must not depend on time. If a pair occurs in both orders,
            both must have the same P.
        confidence: Level of the intervals.

    Returns:
        Frame of `srel_tf.hypotheses.COLUMNS`.

    Raises:
        FrameError: As in `srel_tf.hypotheses.series.groups`. Also if P is negative, not finite or not symmetric, or if
            `proximity` has a column step, seed or run.
        OptionError: `confidence` is not in [0.5, 1).

    Example:
        Simulated S_rel = 2 P of 20 sources in 3 seeds.

        >>> import numpy as np
        >>> import pandas as pd
        >>> from srel_tf.hypotheses import bounded_by_proximity
        >>> p = pd.DataFrame({"source_id": range(20), "target_id": 99, "proximity": np.arange(1.0, 21)})
        >>> noise = np.random.default_rng(0).uniform(0.99, 1.01, size=(3, 20))
        >>> runs = [p.assign(run=f"run-{s}", seed=s, srel=2 * p["proximity"] * noise[s]) for s in range(3)]
        >>> frame = pd.concat(runs).assign(step=0, measure="l2", update="sgd", estimator="exact", valid=True)
        >>> bounded_by_proximity(frame.drop(columns="proximity"), p)["verdict"].tolist()
        ['supported', 'supported', 'undecided']
    """
    check_confidence(confidence)
    check_columns(proximity, ["target_id", "source_id", "proximity"])
    _check_proximity(proximity)
    rows: list[Row] = []
    for key, part in groups(frame):
        joined = join(part, proximity, "proximity")
        proximities = cube(joined.assign(srel=joined["proximity"])).srel
        p = np.nanmax(proximities, axis=(0, 2))  # [pair]
        about = {"hypothesis": "1.1(b)", **key}
        rows += _verdicts(_with_values(cube(joined)), p, about, confidence)
    return table(rows)


def _check_proximity(proximity: pd.DataFrame) -> None:
    """Raise `FrameError` unless P is finite, non-negative, independent of time and symmetric."""
    values = pd.to_numeric(proximity["proximity"], errors="coerce").astype(float)
    is_fine = np.isfinite(values) & (values >= 0)
    if not is_fine.all():
        raise FrameError(
            f"proximity must hold finite numbers >= 0; {(~is_fine).sum()} rows do not"
        )
    if set(proximity.columns) & {"step", "seed", "run"}:
        raise FrameError(
            "proximity has a column step, seed or run, but P(x, x') depends on x and x' alone (Hypothesis 1.1(b)): "
            "give one value per pair, without these columns"
        )
    mirrored = proximity.merge(
        proximity,
        left_on=["source_id", "target_id"],
        right_on=["target_id", "source_id"],
        suffixes=("", "_mirrored"),
    )
    if not np.allclose(
        mirrored["proximity"], mirrored["proximity_mirrored"], rtol=1e-9
    ):
        raise FrameError(
            "proximity differs between (x, x') and (x', x), but P is symmetric (Hypothesis 1.1(b)): give the same "
            "value for both orders"
        )


def _with_values(whole: Cube) -> Cube:
    """Leave out the seeds without a valid value."""
    has_values = np.isfinite(whole.srel).any(axis=(1, 2))
    return whole._replace(
        srel=whole.srel[has_values],
        seeds=selected(whole.seeds, has_values),
    )


def _verdicts(
    whole: Cube,
    p: np.ndarray,
    about: Mapping[str, str],
    confidence: float,
) -> list[Row]:
    """Make the rows of one group.

    Args:
        whole: S_rel.
        p: P, [pair].
        about: The columns hypothesis, measure, update, estimator.
        confidence: Level of the intervals.

    Returns:
        One row per claim.
    """
    known = np.where(np.isfinite(whole.srel), whole.srel, -np.inf)
    highest = known.max(axis=2)  # [seed, pair]
    used = _used_pairs(whole, p, highest)
    scope = f"{len(used.log_p)} pairs of {used.n_sources} sources with P > 0"
    reason = ""
    if used.n_sources >= MIN_SOURCES and np.ptp(used.log_p) > 0:
        constant = 2 ** (used.logs - used.log_p).max()
        scope += f", max S_rel/P = {constant:.3g}"
        effects = _effects(whole, p, used, confidence)
    else:
        unknown = np.full(len(whole.seeds), np.nan)
        effects = [Effect(claim, unknown) for claim in CLAIMS.values()]
        if len(whole.seeds) >= MIN_SEEDS:
            needed = f"{MIN_SOURCES} and different P are needed"
            reason = f"{used.n_sources} sources with valid S_rel > 0: {needed}"

    rows = [
        effect.row({**about, "scope": scope}, confidence, reason) for effect in effects
    ]
    refutation = _refutation(highest, p)
    return [row | refutation if row["claim"] == AS_FAST else row for row in rows]


def _used_pairs(
    whole: Cube,
    p: np.ndarray,
    highest: np.ndarray,
) -> _UsedPairs:
    """Select the pairs with P > 0 and S_rel > 0 in every seed, because the logarithms of the others are undefined.

    Args:
        whole: S_rel.
        p: P, [pair].
        highest: Highest S_rel in time, [seed, pair]; −∞ if no S_rel of the pair is valid.

    Returns:
        The used pairs.
    """
    is_known = (highest > 0).all(axis=0)
    is_used = (p > 0) & is_known
    source_ids = whole.pairs[is_used].get_level_values(0)
    source, sources = source_ids.factorize()
    return _UsedPairs(
        log_p=np.log2(p[is_used]),
        logs=log2(highest[:, is_used]),
        source=source,
        n_sources=len(sources),
    )


def _effects(
    whole: Cube,
    p: np.ndarray,
    used: _UsedPairs,
    confidence: float,
) -> list[Effect]:
    """Compute the effect of each claim.

    Args:
        whole: S_rel.
        p: P, [pair].
        used: The pairs from which α is estimated.
        confidence: Level of the jackknife.

    Returns:
        The effects.
    """
    alpha = slopes(used.logs, used.log_p)
    # The jackknife leaves each source out in turn, with all its pairs.
    is_kept = used.source != np.arange(used.n_sources)[:, None]  # [source, pair]
    draws = slopes(np.where(is_kept, used.logs.mean(axis=0), np.nan), used.log_p)
    shared = of_jackknife(draws, confidence)
    return [
        Effect(CLAIMS[RISES], alpha, shared),
        Effect(CLAIMS[AS_FAST], alpha, shared),
        Effect(CLAIMS[IN_TIME], _growth(whole, p)),
    ]


def _refutation(highest: np.ndarray, p: np.ndarray) -> Row:
    """Return the verdict "contradicted" and its reason if a pair with P = 0 has S_rel > 0 in all seeds.

    Args:
        highest: Highest S_rel in time, [seed, pair].
        p: P, [pair].

    Returns:
        The columns verdict and reason; {} if there is no such pair, or fewer than `MIN_SEEDS` seeds.
    """
    n_seeds = len(highest)
    is_above_zero = (highest > 0).all(axis=0)
    is_refuting = is_above_zero & (p == 0)
    n_refuting = is_refuting.sum()
    if n_seeds < MIN_SEEDS or not n_refuting:
        return {}
    reason = f"{n_refuting} pairs have P = 0, and S_rel > 0 in all {n_seeds} seeds: no C gives S_rel <= C·P"
    return {
        "verdict": "contradicted",
        "reason": reason,
    }


def _growth(whole: Cube, p: np.ndarray) -> np.ndarray:
    """Compute by how much log₂ (max S_rel/P over pairs) changes over the second half of the time.

    Args:
        whole: S_rel.
        p: P, [pair].

    Returns:
        [seed]; NaN if the second half has fewer than 3 measured steps, or if no pair has finite values at every one of
        these steps in every seed.
    """
    middle = (whole.steps[0] + whole.steps[-1]) / 2
    is_late = whole.steps >= middle
    late = whole.srel[:, :, is_late]
    # The maxima of all steps and seeds are taken over the same pairs: the pairs with finite values at all late steps.
    is_known = np.isfinite(late).all(axis=(0, 2))
    is_followed = (p > 0) & is_known
    if is_late.sum() < 3 or not is_followed.any():
        return np.full(len(whole.seeds), np.nan)
    steps = whole.steps[is_late]
    ratios = late[:, is_followed] / p[is_followed][:, None]
    highest_ratio = ratios.max(axis=1)  # [seed, step]
    span = steps[-1] - steps[0]
    return slopes(log2(highest_ratio), steps) * span
