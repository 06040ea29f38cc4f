"""Items 16–22 of `train.errata`: theorems and statements of the text, on the solvable models (Figures 10–13).

Each check computes its `Findings` from the closed forms of `srel_tf.theory`. The checks do not use their argument, the
`Evidence`. `tests/theory/test_statements_*.py` tests the same counterexamples.
"""

from collections.abc import Sequence

import numpy as np

from srel_tf import theory
from train.errata import variants
from train.errata.evidence import Evidence, Findings, extremes
from train.theory import figures

EQ_14 = theory.DiagonalQuadratic(*figures.MOMENTS, figures.THETA)
# The set-up of Theorem 5.3: a, b, w(0), θ, for which α² = 1 and β² = 3.
THEOREM_5_3 = [1.0, 2.0], [1.0, 2.0], [0.5, 0.5], 0.1
SGD_RATE = 0.05  # Larger than the rate of Figure 10, so that rounding dominates sooner.


def theorem_5_3(evidence: Evidence) -> Findings:
    """Check item 16: β₂₂(x')² is printed instead of β₂₂(x)², and the assumption E[β₁₁β₂₂] = 0 is missing."""
    names = "S_rel", "bound as printed", "bound with β₂₂(x)²"
    case = theorem_5_3_case([1.0, 0.1], [1.0, 10.0])
    example = "β(x) = (1, 10), β(x') = (1, 0.1), t = 60"
    findings = {f"{name}, {example}": v for name, v in zip(names, case, strict=True)}
    for name, share in zip(names[1:], shares_beyond_the_bound(1000), strict=True):
        findings[f"share of 1,000 pairs of N(0, I) with S_rel below the {name}"] = share
    uncorrelated, correlated = [1.0, 0.0], [1.0, 1.0]
    example = "E[β₁₁β₂₂] = 0.9, β(x) = (1, 1), β(x') = (1, 0)"
    srel = srel_of_correlated_features(0.9, uncorrelated, correlated)
    bound = theorem_5_3_case(uncorrelated, correlated)[-1]
    return findings | {f"S_rel, {example}": srel, f"bound, {example}": bound}


def theorem_5_3_case(
    target: Sequence[float], source: Sequence[float], time: float = 60.0
) -> list[float]:
    """Evaluate eq. 13 and eq. 39 for one pair.

    Args:
        target: β(x'), [2].
        source: β(x), [2].
        time: t.

    Returns:
        S_rel of eq. 13, eq. 39 as printed, and eq. 39 with β₂₂(x)².
    """
    a, b, w0, theta = THEOREM_5_3
    arguments = *THEOREM_5_3, time, target, source
    values = (
        theory.DiagonalQuadratic(a, b, theta).srel(w0, time, target, source),
        variants.printed_theorem_5_3_bound(*arguments, t2_star=20.0),
        theory.theorem_5_3_bound(*arguments, t2_star=20.0),
    )
    return [float(value[0]) for value in values]


def shares_beyond_the_bound(count: int) -> list[float]:
    """Return, for each of two lower bounds, the share of random pairs whose S_rel at t = 60 is below the bound.

    Relative differences up to 1e-12 count as rounding.

    Args:
        count: Number of pairs of β(x') and β(x), drawn from N(0, I).

    Returns:
        The share for eq. 39 as printed, and for eq. 39 with β₂₂(x)².
    """
    drawn = np.random.default_rng(0).normal(size=(count, 2, 2))
    srel, *bounds = np.transpose([theorem_5_3_case(*pair) for pair in drawn])
    return [(srel < bound * (1 - 1e-12)).mean() for bound in bounds]


def srel_of_correlated_features(
    moment: float, target: Sequence[float], source: Sequence[float], time: float = 60.0
) -> float:
    """Integrate the flow with correlated features numerically, and return the limit η → 0 of S_rel (eq. 31).

    Args:
        moment: E[β₁₁β₂₂].
        target: β(x'), [2].
        source: β(x), [2].
        time: t.

    Returns:
        S_rel.
    """
    a, b, w0, theta = THEOREM_5_3
    moments = np.diag(b) + moment * (1 - np.eye(2))
    squares = theory.moment_flow(a, moments, w0, [0.0, time], theta, 2).numpy()[-1] ** 2
    return abs(squares @ np.multiply(target, source)) / (squares @ np.square(source))


def absolute_values(evidence: Evidence) -> Findings:
    """Check item 17: eq. 14 can be negative, because it is printed without absolute values."""
    targets, sources = np.random.default_rng(0).normal(size=(2, 10_000, 3))
    times = [0.0, 500.0]
    random = variants.printed_eq_14(EQ_14, figures.START, times, targets, sources)
    sources, targets = np.swapaxes(list(figures.PAIRS.values()), 0, 1)
    steps = np.arange(1.0, 1001)
    drawn = variants.printed_eq_14(EQ_14, figures.START, steps, targets, sources)
    shares = (random < 0).mean(axis=1)
    n_negative = (drawn < 0).any(axis=0).sum()
    return {
        "share of 10,000 pairs of N(0, I) with eq. 14 negative, t = 0": shares[0],
        "share of 10,000 pairs of N(0, I) with eq. 14 negative, t = 500": shares[1],
        f"number of our {len(targets)} pairs of Figures 12 and 13 with eq. 14 negative at some t": n_negative,
    }


def bound_in_time(evidence: Evidence) -> Findings:
    """Check item 18: Theorem 5.1's bound changes along the flow of eq. 14; only P(x, x') does not depend on time."""
    h = theory.HomogeneousPredictor(lambda x: 0 * x[:, 0], lambda x: x[:, None, :], 2)
    times = [0, 100, 1000]
    path = EQ_14.weights(figures.START, times)[:, None, :]
    points = "x = (2, 0.1, 0.3), x' = (1, 1, 0.5)"
    x_target, x_source = [1.0, 1.0, 0.5], [2.0, 0.1, 0.3]
    bounds = h.srel_bound(path, x_target, x_source).numpy()
    names = [f"bound at t = {time}, {points}" for time in times]
    findings = dict(zip(names, bounds, strict=True))
    findings[f"P, {points}"] = float(h.proximity(x_target, x_source))
    target = np.array([1.0, -2.0, 1.0])
    for name, source in (("x = x'", target), ("x = x'/100", target / 100)):
        srel = h.srel_limit(figures.START[None], target, source)
        findings[f"P, {name}"] = float(h.proximity(target, source))
        findings[f"S_rel, {name}"] = float(srel)
    return findings


def attained_bound(evidence: Evidence) -> Findings:
    """Check item 19: Theorem 4.3's bound is attained, and the fluctuations in Figure 10 are rounding."""
    n, x = figures.GATE["dimension"], figures.GATE_SOURCE
    target = np.tile([30.0, -2.0], n // 2)
    bound = float(theory.ReLUGate.late_lower_bound(target, x))
    times = np.linspace(0, 100, 50)
    flow = theory.ReLUGate(np.ones(n)).srel(np.full(n, 0.5), times, target, x, 1e-4)
    srel, resolved = differenced(1.4 * x, x)
    is_undefined = np.isnan(srel)
    noise = srel[~resolved & ~is_undefined]
    of_flow = np.abs(flow / bound - 1).max()
    of_resolved = np.abs(srel[resolved] / 1.4 - 1).max()
    times_figure_10 = SGD_RATE / figures.GATE["learning_rate"]
    sgd = f"finite differences along SGD in float64 ({times_figure_10:g} × Figure 10's rate, x' = 1.4 x)"
    return {
        "bound, open gates, x' = (30, −2, …)": bound,
        "largest relative difference of the flow's S_rel from the bound": of_flow,
        f"{sgd}: largest relative difference from 1.4 at resolved iterates": of_resolved,
        f"{sgd}: first iteration that is not resolved": np.argmin(resolved),
        f"{sgd}: number of finite values at unresolved iterates": len(noise),
        f"{sgd}: number of iterates with 0/0, of {len(srel)}": is_undefined.sum(),
    } | extremes(f"{sgd}: finite values at unresolved iterates", noise)


def differenced(
    target: np.ndarray, source: np.ndarray, steps: int = 3000
) -> list[np.ndarray]:
    """Compute S_rel along SGD on the risk of a ReLU gate with open gates, by finite differences of predictions.

    Args:
        target: x', [n].
        source: x, [n].
        steps: Number of SGD iterations.

    Returns:
        S_rel at each iterate, and whether float64 resolves it. Both have shape [steps + 1].
    """
    w_star = np.ones(len(source))
    path = theory.relu_sgd(w_star, w_star / 2, SGD_RATE, steps, batch_size=32, seed=0)
    values = theory.relu_risk_srel(path, w_star, target, source, 1e-4)
    return [value.numpy() for value in values]


def lost_choices(evidence: Evidence) -> Findings:
    """Check item 20: Figure 10's x' = (14, …, 14) is 1.4 x, so that S_rel is 1.4 at every w."""
    x, target = figures.GATE_SOURCE, np.full(figures.GATE["dimension"], 14.0)
    weights = np.random.default_rng(0).normal(size=(1000, len(x)))
    values = theory.relu_risk_srel(weights, np.ones(len(x)), target, x, 0.01)
    srel, resolved = (value.numpy() for value in values)
    errors = np.abs(srel[resolved & ~np.isnan(srel)] / 1.4 - 1)
    bound = float(theory.ReLUGate.late_lower_bound(target, x))
    name = "largest relative difference of S_rel from 1.4 at 1,000 random w"
    return {"bound for x' = (14, …, 14)": bound, name: errors.max()}


def all_pairs(evidence: Evidence) -> Findings:
    """Check item 21: four statements that the text makes about all pairs or about the plotted times."""
    return (
        phases_of_all_pairs()
        | falling_pairs()
        | figure_11()
        | distance_to_the_minimum()
    )


def phases_of_all_pairs() -> Findings:
    """Check Hypothesis 1.2(a) on two pairs with S_rel(e₁, x) + S_rel(e₃, x) = 1.

    If S_rel of one pair rises, S_rel of the other pair falls. So S_rel cannot be lower early than late for both pairs.
    """
    source, targets = [1.0, 0.0, 1.0], [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    times = np.linspace(0, 5000, 400)
    srel = EQ_14.srel(figures.START, times, targets, [source, source]).numpy()
    error = np.abs(srel.sum(axis=1) - 1).max()
    return {
        "x = (1, 0, 1): largest difference of S_rel(e₁, x) + S_rel(e₃, x) from 1": error,
        "x = (1, 0, 1): smaller range of the two S_rel over time": np.ptp(
            srel, axis=0
        ).min(),
    }


def falling_pairs(count: int = 4000) -> Findings:
    """Check "S_rel is non-decreasing at all later times" on random pairs."""
    pairs = np.random.default_rng(0).normal(size=(2, count, 3))
    srel = EQ_14.srel(figures.START, np.linspace(1000, 2000, 30), *pairs).numpy()
    is_falling = (np.diff(srel, axis=0) < 0).all(axis=0)
    name = (
        f"share of {count:,} pairs of N(0, I) whose S_rel falls from t = 1000 to 2000"
    )
    return {name: is_falling.mean()}


def figure_11() -> Findings:
    """Check "S_rel decreases as x gets farther away" on Figure 11."""
    srel = figures.distance([500.0])["srel"].to_numpy()
    target = np.array([1.0, -2.0, 1.0])
    shrunk = EQ_14.srel(figures.START, 500.0, target, target / 10).numpy()[0]
    findings = {f"Figure 11: S_rel at z = {z}": srel[z - 1] for z in (1, 2, 100)}
    n_falling = (np.diff(srel) < 0).sum()
    return findings | {
        f"Figure 11: number of steps of z at which S_rel falls, of {len(srel) - 1}": n_falling,
        "S_rel at x = x'/10 (1 at x = x')": shrunk,
    }


def distance_to_the_minimum(runs: int = 50, near: float = 1e-6) -> Findings:
    """Check "‖w_t − w*‖ < 1e-6 eventually".

    Args:
        runs: Number of SGD runs.
        near: The distance ‖w_t − w*‖ that is to be reached.

    Returns:
        The findings.
    """
    times = np.arange(0.0, 6001)
    path = EQ_14.weights(figures.START, times).numpy()
    flow = np.linalg.norm(path - figures.W_STAR, axis=1)
    setting = figures.W_STAR, figures.START, figures.SGD_STEP, 6000
    iterates = theory.diagonal_sgd(*setting, runs=runs, seed=0).numpy()
    sgd = np.linalg.norm(iterates - figures.W_STAR, axis=-1)
    findings = {
        "flow: ‖w_t − w*‖ after the 2,000 plotted steps": flow[figures.SGD_STEPS],
        f"flow: first t with ‖w_t − w*‖ < {near:g}": times[np.argmax(flow < near)],
    }
    for step in (figures.SGD_STEPS, 4000, 6000):
        name = f"share of {runs} SGD runs with ‖w_t − w*‖ < {near:g} at step {step}"
        findings[name] = (sgd[step] < near).mean()
    return findings


def theorem_5_2_range(evidence: Evidence) -> Findings:
    """Check item 22: eq. 36 also holds if w(0) is outside the range of Theorem 5.2."""
    times = np.array([0.0, 10.0, 200.0, 900.0])
    starts = {
        "above a/b": [3.0, -5.0, 4.0],
        "equal to a/b": [1.0, 2.0, 3.0],
        "with one entry 0": [0.0, 1.0, 5.0],
    }
    wide = theory.DiagonalQuadratic(*figures.MOMENTS, figures.THETA, initial="any")
    findings = {}
    for name, start in starts.items():
        path = theory.moment_flow(wide.a, np.eye(3), start, times, figures.THETA, 2)
        error = np.abs(wide.weights(start, times) - path).max() / np.abs(path).max()
        findings[
            f"w(0)² {name}: relative difference of eq. 36 from the integrated flow"
        ] = error
    return findings
