"""Items 19–21 of `train.errata`: what Figures 10–13 show, and sentences that quantify over all pairs.

As in `train.errata_theory`: each function returns (check, effect) as text.
"""

import numpy as np

from srel_tf import theory
from train import theory_figures as figures
from train.errata_theory import EQ_14


def attained_bound(evidence):
    n = figures.GATE["dimension"]
    gate, x, target = theory.ReLUGate(np.ones(n)), figures.GATE_SOURCE, np.tile([30.0, -2.0], n // 2)
    bound = float(theory.ReLUGate.late_lower_bound(target, x))
    flow = gate.srel(np.full(n, 0.5), np.linspace(0, 100, 50), target, x, 1e-4).numpy()
    srel, resolved = differenced(1.4 * x, x)
    first, late = int(np.argmin(resolved)), srel[-500:]
    check = (
        f"open gates, x' = (30, −2, …): the flow's S_rel is the bound {bound:g} to {np.abs(flow / bound - 1).max():.0e} at all "
        f"times; differenced along SGD, x' = 1.4 x, float64: 1.4 to {np.abs(srel[resolved] / 1.4 - 1).max():.0e} while the "
        f"change is resolved"
    )
    effect = (
        f"what fluctuates late is rounding: from iteration {first} changes are not resolved, and of the last 500 of 3,000 "
        f"{np.isnan(late).mean():.0%} are 0/0 and the others {span(late)}"
    )
    return check, effect


def differenced(target, source, steps=3000):
    """S_rel along SGD on a ReLU gate's risk with all gates open, by differences of predictions, and what is resolved."""
    w_star = np.ones(len(source))
    path = theory.relu_sgd(w_star, w_star / 2, 0.05, steps, batch_size=32, seed=0)
    return [values.numpy() for values in theory.relu_risk_srel(path, w_star, target, source, 1e-4)]


def span(values):
    """From the lowest to the highest number, in words."""
    known = values[np.isfinite(values)]
    return f"lie between {known.min():.3g} and {known.max():.3g}" if len(known) else "are none"


def lost_choices(evidence):
    x, target = figures.GATE_SOURCE, np.full(figures.GATE["dimension"], 14.0)
    weights = np.random.default_rng(0).normal(size=(1000, len(x)))
    srel, resolved = (v.numpy() for v in theory.relu_risk_srel(weights, np.ones(len(x)), target, x, 0.01))
    error = np.abs(srel[resolved & ~np.isnan(srel)] / 1.4 - 1).max()
    check = (
        f"x' = (14, …, 14) gives {float(theory.ReLUGate.late_lower_bound(target, x)):g}; it is 1.4 x, so that S_rel is 1.4 "
        f"at any w: to {error:.0e} at 1,000 random ones (where the gate of x is open)"
    )
    effect = (
        "with that x' Figure 10 can show no phases; x' = (30, −2, …, 30, −2) has the same bound and is drawn beside it. "
        "Chosen by us: the pairs of Figures 12 and 13 (train.theory_figures), the net of Figures 3–5 (20 inputs, three "
        "layers of 16)"
    )
    return check, effect


def all_pairs(evidence):
    check = "; ".join([phases_of_all_pairs(), falling_pairs(), figure_11(), distance_to_the_minimum()])
    return check, "each sentence holds for some pairs or from some time on, and not as it is written"


def phases_of_all_pairs():
    source, targets = [1.0, 0.0, 1.0], [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    srel = EQ_14.srel(figures.START, np.linspace(0, 5000, 400), targets, [source, source]).numpy()
    error, moved = np.abs(srel.sum(axis=1) - 1).max(), np.ptp(srel, axis=0).min()
    return (
        f"Hypothesis 1.2(a), x = (1, 0, 1): S_rel(e₁, x) + S_rel(e₃, x) = 1 at all times (to {error:.0e}, each moves by "
        f"{moved:.3f}), so not both can be lower early than late"
    )


def falling_pairs(count=4000):
    pairs = np.random.default_rng(0).normal(size=(2, count, 3))
    srel = EQ_14.srel(figures.START, np.linspace(1000, 2000, 30), *pairs).numpy()
    share = (np.diff(srel, axis=0) < 0).all(axis=0).mean()
    return f"“non-decreasing at all later times”: of {count:,} pairs of N(0, I) {share:.1%} fall from t = 1000 to 2000 throughout"


def figure_11():
    frame = figures.distance([500.0])
    srel = frame["srel"].to_numpy()
    falls = (np.diff(srel[1:]) < 0).all()
    target = [1.0, -2.0, 1.0]
    towards = EQ_14.srel(figures.START, 500.0, [target], [np.divide(target, 10)]).numpy()[0, 0]
    return (
        f"“decreases as x gets farther away”, Figure 11's path: S_rel {srel[0]:.4f} at z = 1, {srel[1]:.4f} at z = 2, "
        f"{'falling' if falls else 'not falling throughout'} from there to {srel[-1]:.4f}; from x = x' to x'/10 it rises from 1 to {towards:.3g}"
    )


def distance_to_the_minimum(runs=50, near=1e-6):
    times = np.arange(0.0, 6001)
    flow = np.linalg.norm(EQ_14.weights(figures.START, times).numpy() - figures.W_STAR, axis=1)
    path = theory.diagonal_sgd(figures.W_STAR, figures.START, figures.SGD_STEP, 6000, runs=runs, seed=0).numpy()
    sgd = np.linalg.norm(path - figures.W_STAR, axis=-1)
    shares = {step: (sgd[step] < near).mean() for step in (figures.SGD_STEPS, 4000, 6000)}
    told = ", ".join(f"{share:.0%} at {step}" for step, share in shares.items())
    return (
        f"‖w_t − w*‖ < 1e-6: the flow is at {flow[figures.SGD_STEPS]:.1e} after the 2,000 plotted steps and gets there at "
        f"{int(times[np.argmax(flow < near)])}; of {runs} SGD runs {told} (“eventually” is right)"
    )
