"""The hypotheses of Section 1.3 as checks, from an S_rel frame to a tidy frame of verdicts. Does not import TensorFlow.

| paper | here |
|---|---|
| Hypothesis 1.1(a), proximity | `proximity_trend` |
| Hypothesis 1.1(b), S_rel = O(P) | `bounded_by_proximity` |
| Hypothesis 1.2, two phases, and Figure 5's claim on the risks | `two_phases`, `change_points` |
| intra-class against inter-class (Sections 1.3 and 2.1) | `class_claim` |

For other claims, `decide` makes a verdict from one effect per seed, and `interval` computes its interval.

All checks return one row per claim and measure, with the same `COLUMNS`:

- `hypothesis`, `claim`, `scope` (metric, step, times, number of pairs); `measure`, `update`, `estimator` of the frame;
- `effect`: the computed quantity, one number per seed; `effect_size`: its mean over seeds; `ci_low`, `ci_high`: its
  interval at level `confidence` over `n_seeds` seeds;
- `claim_low`, `claim_high`: bounds between which the effect lies according to the hypothesis;
- `verdict`: "supported" if the whole interval lies between the bounds, "contradicted" if no part of it does, else
  "undecided";
- `reason`: the reason of the verdict in words.

Error rate: if the true effect is outside the claim's bounds, the probability of "supported" is at most
(1 − confidence)/2. If it is inside, the probability of "contradicted" is at most this. At a bound the two together have
1 − confidence. The rate is for one row: at 95%, one of forty true rows is expected to be wrong. The rate assumes
that seeds are independent and that their effects are about normal. Five seeds cannot show that one training in
twenty behaves differently. `python -m tests.hypotheses.calibrate` counts the wrong verdicts on simulated frames
(results/hypotheses).

A valid S_rel of 0 counts as the lowest value (2⁻⁶⁴ where logarithms are averaged). Only invalid entries are missing.
"""

from srel_tf.hypotheses.bound import bounded_by_proximity
from srel_tf.hypotheses.classes import class_claim
from srel_tf.hypotheses.phases import two_phases
from srel_tf.hypotheses.proximity import proximity_trend
from srel_tf.hypotheses.segments import change_points
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
