"""The claim on classifiers (Sections 1.3 and 2.1): intra-class S^{k,smooth} is above inter-class, and constant."""

import numpy as np

from srel_tf.errors import FrameError
from srel_tf.hypotheses.phases import ALMOST, NEGLIGIBLE
from srel_tf.hypotheses.series import groups, replicates, slopes
from srel_tf.hypotheses.verdicts import check_confidence, decide, table
from srel_tf.stats import smooth

CONSTANT = 0.5  # In log₂: "relatively constant" means a change by less than a factor of √2 over the training.
MIN_STEPS = 3
CLAIMS = (
    ("intra above inter at (almost) all times", "share of (class pair, step)", (ALMOST, np.inf)),
    ("intra above inter", "log₂ (intra / inter), mean over class pairs and steps", (NEGLIGIBLE, np.inf)),
    ("intra constant in time", "log₂ change of intra over the measured span", (-CONSTANT, CONSTANT)),
    ("inter decreasing", "log₂ change of inter over the measured span", (-np.inf, -NEGLIGIBLE)),
    ("inter decreases more than intra", "log₂ change of inter minus that of intra", (-np.inf, -NEGLIGIBLE)),
)


def class_claim(frame, confidence=0.95, diagonal=False):
    """Verdicts on the classification claim, one a measure, update rule, estimator and part of the claim.

    frame: S_rel frame of several seeds with classes (`srel_tf.frames.COLUMNS`); S^{k,smooth} is `srel_tf.smooth`'s.
    diagonal: whether the pairs of an example with itself count. They do in the paper's Definition 3, and are 1 whatever
        the net does: they alone lift intra above inter where S_rel < 1. Left out by default.

    Each effect is one number a seed: for a source class c, intra is S(c, c), inter S(c', c) for each other class c'.
    A class mean of which less than half of the entries are valid counts as missing. Changes are least-squares slopes
    of log₂ S^{k,smooth} times the measured span, mean over classes; the bounds stand in `claim_low`, `claim_high`.

    Returns a frame of `srel_tf.hypotheses.COLUMNS`; "undecided" for less than 3 seeds or 3 steps. Raises `FrameError`
    for frames that do not fit or have less than two classes.
    """
    check_confidence(confidence)
    rows = []
    for key, part in groups(frame):
        chosen = frame[(frame[list(key)] == list(key.values())).all(axis=1)]
        chosen = chosen.assign(
            run=replicates(chosen),
            step=chosen["step"].astype(float),
            valid=chosen["valid"] & np.isfinite(chosen["srel"]),
        )
        means = smooth(chosen, diagonal=diagonal)
        means = means[(means["n_valid"] > 0) & (means["n_valid"] >= means["n_pairs"] / 2) & (means["mean"] > 0)]
        _check_classes(part)
        about = {"hypothesis": "classification", **key, "scope": f"{part['source_class'].nunique()} classes"}
        effects = np.array([_effects(_of_run(means, run)) for run in part["replicate"].unique()])
        for i, (claim, effect, bounds) in enumerate(CLAIMS):
            rows.append(decide({**about, "claim": claim, "effect": effect}, effects[:, i], bounds, confidence))
    return table(rows)


def _check_classes(part):
    names = part["source_class"]
    if names.isna().any() or (names.astype(str) == "").any() or names.nunique() < 2:
        raise FrameError("the claim compares classes: source_class must name at least two, and none may be empty")


def _of_run(means, run):
    """{(source class, target class): (steps, log₂ S^{k,smooth})} of one run."""
    curves = means[means["run"] == run].sort_values("step").groupby(["source_class", "target_class"], observed=True)
    return {pair: (c["step"].to_numpy(float), np.log2(c["mean"].to_numpy(float))) for pair, c in curves}


def _effects(curves):
    """The five effects of one seed, in the order of `CLAIMS`."""
    gaps = [
        intra[np.isin(intra_steps, inter_steps)] - inter[np.isin(inter_steps, intra_steps)]
        for (source, target), (inter_steps, inter) in curves.items()
        if source != target and (source, source) in curves
        for intra_steps, intra in [curves[source, source]]
    ]
    gaps = np.concatenate(gaps) if gaps else np.array([])
    changes = {same: [_change(*c) for (s, t), c in curves.items() if (s == t) == same] for same in (True, False)}
    intra, inter = (np.nanmean(c) if np.isfinite(c).any() else np.nan for c in changes.values())
    return [
        (gaps > 0).mean() if len(gaps) else np.nan,
        gaps.mean() if len(gaps) else np.nan,
        intra,
        inter,
        inter - intra,
    ]


def _change(steps, values):
    if len(steps) < MIN_STEPS:
        return np.nan
    return slopes(values, steps) * (steps[-1] - steps[0])
