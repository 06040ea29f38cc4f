"""Checks of the hypotheses of Section 1.3, which turn an S_rel frame into a tidy frame of verdicts.

This package does not import TensorFlow.

| paper | here |
|---|---|
| Hypothesis 1.1(a), proximity | `proximity_trend` |
| Hypothesis 1.1(b), S_rel = O(P) | `bounded_by_proximity` |
| Hypothesis 1.2, two phases, and Figure 5's claim on the risks | `two_phases`, `change_points` |
| intra-class compared with inter-class (Sections 1.3 and 2.1) | `class_claim` |

For other claims, `decide` makes a verdict from one effect per seed, and `interval` computes the interval of the mean
effect.

All checks return one row per claim and measure, with the same `COLUMNS`:

- `hypothesis`, `claim`: what is checked;
- `scope`: metric, step, times and number of pairs to which the row applies;
- `name`, `measure`, `update`, `estimator`: as in the frame;
- `effect`: the computed quantity, one number per seed;
- `effect_size`: mean of the effect over seeds;
- `ci_low`, `ci_high`: interval of this mean at level `confidence`, over `n_seeds` seeds;
- `claim_low`, `claim_high`: bounds between which the effect lies according to the hypothesis;
- `verdict`: "supported" if the whole interval lies between the bounds, "contradicted" if no part of it does, and
  "undecided" otherwise;
- `reason`: the reason for the verdict, in words.

Error rate: if the true effect is outside the bounds of the claim, the probability of "supported" is at most
(1 − confidence)/2. If the true effect is between the bounds, the probability of "contradicted" is at most
(1 − confidence)/2. If the true effect is exactly on a bound, both verdicts are wrong, and one of them is given with
probability 1 − confidence. These rates hold for a single row: at 95%, up to one in forty rows on true claims is
expected to be wrong. The rates assume that seeds are independent and that their effects are approximately normal. Five
seeds cannot show that one training in twenty behaves differently. `python -m tests.hypotheses.calibrate` counts the
wrong verdicts on simulated frames (results/hypotheses).

A valid S_rel of 0 counts as the lowest value. Where logarithms are averaged, 0 is replaced by 2⁻⁶⁴. Only invalid
entries count as missing.
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
