"""The hypotheses of Section 1.3 as checks: a frame of S_rel in, a tidy frame of verdicts out. Knows no TensorFlow.

| paper | here |
|---|---|
| Hypothesis 1.1(a), proximity | `proximity_trend` |
| Hypothesis 1.1(b), S_rel = O(P) | `bounded_by_proximity` |
| Hypothesis 1.2, two phases, and Figure 5's claim on the risks | `two_phases`, `change_points` |
| intra-class against inter-class (Sections 1.3 and 2.1) | `class_claim` |

`decide` makes a verdict of one effect a seed, `interval` is its interval: for claims of your own.

All return one row a claim and measure, with the same `COLUMNS`:

- `hypothesis`, `claim`, `scope` (metric, step, times, number of pairs); `measure`, `update`, `estimator`: the frame's;
- `effect`, what was computed, one number a seed; `effect_size`, its mean over seeds; `ci_low`, `ci_high`, its interval
  at level `confidence` over `n_seeds` seeds;
- `claim_low`, `claim_high`: the hypothesis says that the effect lies between these;
- `verdict`: "supported" where the whole interval does, "contradicted" where none of it does, else "undecided";
- `reason`: of the verdict, in words.

The stated error rate: if the true effect is outside the claim's bounds, "supported" has a probability of at most
(1 − confidence)/2, if it is inside, "contradicted" has; at a bound the two together have 1 − confidence. That is a rate
for one row: of forty true rows one is expected to go wrong at 95%. It rests on seeds that are independent, and on
effects that are about normal among them: that one training in twenty behaves otherwise is nothing that five seeds can
show. `python -m tests.hypotheses.calibrate` counts the wrong verdicts on simulated frames (results/hypotheses).

A valid S_rel of 0 is a value, below all others (2⁻⁶⁴ where logarithms are averaged); only invalid entries are missing.
"""

from srel_tf.hypotheses.bound import bounded_by_proximity
from srel_tf.hypotheses.classes import class_claim
from srel_tf.hypotheses.phases import change_points, two_phases
from srel_tf.hypotheses.proximity import proximity_trend
from srel_tf.hypotheses.verdicts import COLUMNS, decide, interval, undecided

__all__ = [
    "COLUMNS",
    "bounded_by_proximity",
    "change_points",
    "class_claim",
    "decide",
    "interval",
    "proximity_trend",
    "two_phases",
    "undecided",
]
