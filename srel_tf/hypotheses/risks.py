"""Figure 5's claim: the initial rise of S_rel coincides with the phase in which the risks fall rapidly.

That phase is the risk's own: from the start until 90% of the fall of log risk is done. Whether both settle at the same
time is not judged: a change point, or a time of settling, can be computed of any series, also of one that has none.

- "S_rel rises while the risk falls rapidly": least-squares slope of log₂ S_rel in that phase times its length;
- "faster then than after": that slope less the one after, per measured span;
- "from the start on": log₂ of S_rel when half of the fall of log risk is done over S_rel at the start.

A seed counts where its risk falls to less than half and S_rel was measured at 3 steps in the phase and 12 after.
"""

import numpy as np

from srel_tf.errors import FrameError
from srel_tf.frames.schema import check_columns
from srel_tf.hypotheses.series import NEGLIGIBLE, replicates, slopes
from srel_tf.hypotheses.verdicts import of_median_pair

CLAIMS = (
    ("S_rel rises while the risk falls rapidly", "log₂ change of S_rel in that phase", (NEGLIGIBLE, np.inf)),
    ("S_rel rises faster then than after", "difference of slopes of log₂ S_rel", (NEGLIGIBLE, np.inf)),
    ("S_rel rises from the start on", "log₂ change until half of the fall is done", (NEGLIGIBLE, np.inf)),
)
RAPID, LEAST_FALL, LEAST_IN, LEAST_AFTER = 0.9, 1.0, 3, 12


def risk_rows(followed, risks, about, confidence):
    """Rows of the verdict table; followed: `Cube` of log₂ S_rel. `FrameError` for risks that do not fit."""
    rows = []
    for kind, curves in _curves(risks, followed).items():
        effects = np.full((len(followed.seeds), len(CLAIMS), len(followed.pairs)), np.nan)
        ends = []
        for seed, (steps, log_risk) in enumerate(curves):
            half, rapid = rapid_fall(steps, log_risk)
            ends.append(rapid)
            effects[seed] = _effects(followed.srel[seed], followed.steps, half, rapid)
        scope = f"{kind} risk, 90% of its fall done at {np.nanmean(ends):g}" if np.isfinite(ends).any() else kind
        no_fall = "" if np.isfinite(ends).any() else f"the {kind} risk does not fall to less than half in any seed"
        for i, (claim, effect, bounds) in enumerate(CLAIMS):
            names = {**about, "claim": claim, "scope": scope, "effect": effect}
            rows.append(of_median_pair(names, effects[:, i], bounds, confidence, no_fall))
    return rows


def rapid_fall(steps, log_risk):
    """The first steps at which half, and `RAPID`, of the fall of log₂ risk is done; NaN where it hardly falls."""
    start, end = log_risk[0], np.median(log_risk[steps >= steps[-1] - 0.1 * (steps[-1] - steps[0])])
    if start - end < LEAST_FALL:
        return np.nan, np.nan
    return tuple(steps[np.argmax(log_risk <= start - share * (start - end))] for share in (0.5, RAPID))


def _effects(logs, steps, half, rapid):
    """[claim, pair] of one seed."""
    during, after, begun = steps <= rapid, steps > rapid, (steps <= half) & (steps > steps[0])
    if during.sum() < LEAST_IN or after.sum() < LEAST_AFTER:
        return np.nan
    inside, outside = (slopes(logs[:, phase], steps[phase]) for phase in (during, after))
    first = logs[:, begun][:, -1] - logs[:, 0] if begun.any() else np.full(len(logs), np.nan)
    return np.stack([inside * np.ptp(steps[during]), (inside - outside) * (steps[-1] - steps[0]), first])


def _curves(risks, followed):
    """{kind of risk: [(steps, log₂ risk) of each seed]}, from the first to the last step of S_rel."""
    check_columns(risks, ["run", "seed", "step", "split", "loss"])
    risks = risks.reset_index(drop=True)
    names, found = replicates(risks), {}
    missing = [name for name in followed.seeds if name not in set(names)]
    if missing:
        raise FrameError(f"the risks lack the runs {missing}: they have {sorted(set(names))}")
    if not (np.isfinite(risks["loss"].astype(float)) & (risks["loss"] > 0)).all():
        raise FrameError(f"the risks range from {risks['loss'].min()} to {risks['loss'].max()}: they must be positive")
    for kind, of_kind in risks.groupby("split", sort=False):
        found[kind] = []
        for name in followed.seeds:
            curve = of_kind[names.loc[of_kind.index] == name].sort_values("step")
            steps, span = curve["step"].to_numpy(float), followed.steps[[0, -1]]
            if curve["step"].duplicated().any():
                raise FrameError(f"the {kind} risk of {name} has a step twice: drop the copies")
            if len(steps) < 2 or steps[0] > span[0] or steps[-1] < span[1]:
                raise FrameError(f"the {kind} risk of {name} does not span the steps {span}")
            log_risk = np.log2(curve["loss"].to_numpy(float))
            between = np.unique([*span, *steps[(steps > span[0]) & (steps < span[1])]])
            found[kind].append((between, np.interp(between, steps, log_risk)))
    return found
