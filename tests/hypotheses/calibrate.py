"""Count how often the verdicts of `srel_tf.hypotheses` are wrong on frames simulated with and without each effect.

python -m tests.hypotheses.calibrate                   prints the table and writes results/hypotheses/calibration.csv
python -m tests.hypotheses.calibrate --times 100       is faster and less precise

In each scenario a claim is true, is false, or has its effect exactly on the bound. On the bound, "supported" and
"contradicted" are both wrong. The stated rate of each wrong verdict is at most 2.5%.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from srel_tf import write_frame
from srel_tf.hypotheses import (
    bounded_by_proximity,
    class_claim,
    proximity_trend,
    two_phases,
)
from srel_tf.hypotheses.bound import AS_FAST, IN_TIME, RISES
from srel_tf.hypotheses.class_effects import CLAIMS as CLASS_CLAIMS
from srel_tf.hypotheses.phases import CLAIMS as PHASE_CLAIMS
from srel_tf.hypotheses.proximity import NEARER, TREND
from srel_tf.hypotheses.risks import CLAIMS as RISK_CLAIMS
from srel_tf.hypotheses.series import NEGLIGIBLE
from tests.hypotheses.simulate import (
    STEPS,
    TIME,
    in_time,
    ramp,
    risks_of,
    verdicts,
    with_classes,
    with_distances,
    with_proximity,
)  # fmt: skip

ALWAYS, ABOVE, CONSTANT, FALLS, MORE = (claim for claim, *_ in CLASS_CLAIMS)
LEVEL, START, RISE, FASTER, AWAY, BOUND = (
    f"{claim}, median pair" for claim, *_ in PHASE_CLAIMS
)
DURING, THEN, FIRST = (f"{claim}, median pair" for claim, *_ in RISK_CLAIMS)
BOTH = ("supported", "contradicted")
TRUE, FALSE, EDGE = ("contradicted",), ("supported",), BOTH  # Which verdicts are wrong.


class Scenario(NamedTuple):
    """One kind of simulated frame.

    Attributes:
        name: Name of the scenario.
        simulation: Function that simulates a frame with a generator and returns its table of verdicts.
        wrong: {claim: verdicts that are wrong}.
        runs: Share of the number of runs.
    """

    name: str
    simulation: object
    wrong: dict
    runs: float = 1.0


def distances(slope, shared, wrong, **options):
    name = f"slope {slope:g}, shared {shared:g}, " + _named(
        {"sources": 60, "seeds": 5, **options}
    )

    def simulation(g):
        return proximity_trend(
            *with_distances(g, slope, shared, **options), resamples=200
        )

    return Scenario(name, simulation, wrong, _runs(wrong))


def proximity(power, wrong, **options):
    name = f"S ~ P^{power:g}, " + _named({"pairs": 60, "seeds": 5, **options})
    simulation = lambda g: bounded_by_proximity(*with_proximity(g, power, **options))  # noqa: E731
    return Scenario(name, simulation, wrong, _runs(wrong))


def phases(name, shape, wrong, risk=None, **options):
    def simulation(generator):
        frame = in_time(generator, shape, **options)
        return two_phases(
            frame, None if risk is None else risks_of(frame, risk, generator=generator)
        )

    return Scenario(
        f"{name}, " + _named({"seeds": 5, **options}), simulation, wrong, _runs(wrong)
    )


def classes(name, intra, inter, wrong, **options):
    def simulation(g):
        return class_claim(with_classes(g, intra, inter, **options), resamples=100)

    return Scenario(
        f"{name}, " + _named({"seeds": 5, "per_class": 10, **options}),
        simulation,
        wrong,
        _runs(wrong),
    )


def _runs(wrong):
    """Return the share of runs: 1 for effects on the bound, where most wrong verdicts occur, and 1/4 for others."""
    return 1.0 if EDGE in wrong.values() else 0.25


def _named(options):
    return ", ".join(f"{k} {v:g}" for k, v in options.items())


def scenarios():
    """Return all scenarios."""
    null, flat = {TREND: EDGE, NEARER: EDGE}, 0 * STEPS
    still = {LEVEL: EDGE, START: EDGE, RISE: EDGE, FASTER: EDGE, BOUND: TRUE}
    wander = {LEVEL: EDGE, START: EDGE, RISE: EDGE, FASTER: EDGE}
    risky = dict.fromkeys((DURING, THEN, FIRST), EDGE)
    falling = 5 - ramp(0, 150)
    without = {ALWAYS: FALSE, ABOVE: EDGE, CONSTANT: TRUE, FALLS: EDGE, MORE: EDGE}
    found = [
        distances(0, 0, null),
        *(distances(0, 2, null, sources=n, seeds=k) for n in (20, 60) for k in (3, 5)),
        distances(0, 2, null, sources=20, targets=5),
        distances(-0.3, 2, {TREND: TRUE}),
        distances(0.3, 2, {TREND: FALSE, NEARER: FALSE}),
        *(proximity(NEGLIGIBLE, {RISES: EDGE, AS_FAST: FALSE}, pairs=n, shared=2) for n in (20, 60)),
        *(proximity(0.9, {AS_FAST: EDGE, RISES: TRUE}, pairs=n, shared=s) for n, s in ((20, 2), (60, 2), (60, 0))),
        proximity(1, {IN_TIME: TRUE}, noise=0.1),
        proximity(1, {IN_TIME: FALSE}, noise=0.1, growth=1.0),
        *(phases("stationary noise", flat, still, memory=m, seeds=k) for m in (0.0, 0.9) for k in (3, 5)),
        phases("random walks", flat, wander, walk=0.2),
        phases("two phases", ramp(100), dict.fromkeys((LEVEL, START, RISE, FASTER, AWAY, BOUND), TRUE)),
        phases("falls", -ramp(100, 300), dict.fromkeys((LEVEL, START, RISE, AWAY), FALSE)),
        phases("rises, then falls", ramp(100) - ramp(300, 300, 2), {BOUND: FALSE}),
        phases("decays to 0", -STEPS / 20, dict.fromkeys((LEVEL, START, RISE, AWAY, BOUND), FALSE)),
        phases("noise, risk falls", flat, risky, falling),
        phases("random walks, risk falls", flat, risky, falling, walk=0.2),
        phases("rises with the fall of the risk", ramp(0, 150), dict.fromkeys(risky, TRUE), falling),
        phases("rises long after", ramp(300), {DURING: EDGE, THEN: FALSE, FIRST: EDGE}, falling),
        phases("falls, then rises", -ramp(0, 100) + ramp(250, 100, 4), dict.fromkeys(risky, FALSE), falling),
        classes("no effect", 0 * TIME, 0 * TIME, without, pair=1.0),
        classes("no effect", 0 * TIME, 0 * TIME, without, example=0.5, pair=0.5),
        classes("no effect", 0 * TIME, 0 * TIME, without, example=0.5, drift=0.3),
        classes("no effect", 0 * TIME, 0 * TIME, without, example=0.5, pair=0.5, per_class=8),
        classes("as claimed", 0 * TIME, -2 - TIME, dict.fromkeys((ALWAYS, ABOVE, CONSTANT, FALLS, MORE), TRUE),
                pair=0.5, drift=0.1),
        classes("at the bound", 0.5 * TIME, -3 + 0 * TIME, {CONSTANT: EDGE, FALLS: EDGE}, drift=0.3),
    ]  # fmt: skip
    return found


def calibrate(times):
    """Run all scenarios and return the rates of the verdicts.

    The columns are claim, scenario and runs; supported, contradicted and undecided (the rates); wrong (the wrong
    verdicts); and worst (the highest rate of a wrong verdict).
    """
    rows, found = [], scenarios()
    for number, scenario in enumerate(found):
        runs = max(1, int(times * scenario.runs))
        start = time.process_time()
        counts = verdicts(scenario.simulation, runs, seed=number)
        print(
            f"{number + 1}/{len(found)} {scenario.name}: {time.process_time() - start:.0f} s"
        )
        for claim, wrong in scenario.wrong.items():
            rates = {v: counts[claim][v] / runs for v in (*BOTH, "undecided")}
            about = {"claim": claim, "scenario": scenario.name, "runs": runs}
            rows.append(
                {
                    **about,
                    **rates,
                    "wrong": " or ".join(wrong),
                    "worst": max(rates[v] for v in wrong),
                }
            )
            print(
                f"    {claim}: " + ", ".join(f"{v} {r:.4f}" for v, r in rates.items()),
                flush=True,
            )
    return pd.DataFrame(rows)


def main(arguments=None):
    """Run the command. Return 1 if a rate is above the stated rate by more than chance, otherwise 0."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.hypotheses.calibrate", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--times",
        type=int,
        default=300,
        help="runs of each scenario with an effect on the bound; other scenarios have a quarter of these runs",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results/hypotheses/calibration.csv")
    )
    options = parser.parse_args(arguments)
    table = calibrate(options.times)
    above = table[table["worst"] > 0.025 + 3 * np.sqrt(0.025 * 0.975 / table["runs"])]
    print(
        f"{len(table)} rows, {table['runs'].sum()} verdicts; highest rate of a wrong verdict: "
        f"{table['worst'].max():.4f}"
    )
    print(f"above 2.5% by more than three standard errors: {len(above)} rows")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    print(f"written: {write_frame(table, options.out)}")
    return int(len(above) > 0)


if __name__ == "__main__":
    sys.exit(main())
