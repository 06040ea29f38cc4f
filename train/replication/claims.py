"""The paper's claims on classification (Section 2.1), a verdict a dataset, protocol, measure and rule."""

import numpy as np
import pandas as pd

from srel_tf.hypotheses import COLUMNS, decide
from train.replication.condensed import KEY, Directories, read

# Claims on the time dependence of means, and the share of entries from which on a mean is one of a selection.
TRENDS = (
    "intra constant in time",
    "inter decreasing",
    "inter decreases more than intra",
)
MISSING = 0.05
# "Such a separation", intra above inter, is not seen: a separation the other way round is none of that kind.
NO_SEPARATION = (-np.inf, 0.55)
# What one measure is said to do better than another: (claim, first, second, bounds of AUC(first) − AUC(second)).
COMPARISONS = (
    ("KL separates better than ℓ1", "kl", "l1", (0.01, np.inf)),
    ("ℓ1 and ℓ2 are indistinguishable", "l1", "l2", (-0.01, 0.01)),
    (
        "softmax outputs separate better than raw ones, ℓ1",
        "l1",
        "raw_l1",
        (0.01, np.inf),
    ),
    (
        "softmax outputs separate better than raw ones, ℓ2",
        "l2",
        "raw_l2",
        (0.01, np.inf),
    ),
)


def claims(directories: Directories) -> pd.DataFrame:
    """Verdicts on the paper's claims of Section 2.1: those of `class_claim`, and on which measure separates.

    AUCs are means over the measurements after the first epoch, one a seed; differences are paired by seed.
    `valid_last`: share of valid entries at the last step. Where more than `MISSING` of them lack, trends of means are
    undecided: what float32 does not resolve are the rows of the smallest denominators, which carry the means.
    """
    separation = read(directories, "separation.parquet")
    auc = (
        separation[separation["epoch"] >= 1]
        .groupby([*KEY, "update", "estimator", "run"], sort=False)["auc"]
        .mean()
    )
    rows = []
    for (data, protocol, rule), of_rule in auc.groupby(
        ["data", "protocol", "rule"], sort=False
    ):
        by_measure = of_rule.reset_index().pivot(
            index="run", columns="measure", values="auc"
        )
        about = {
            "hypothesis": "Section 2.1",
            "scope": "AUC after the first epoch",
            "update": rule,
            "estimator": "",
        }
        kept = {"data": data, "protocol": protocol, "rule": rule}
        for name in (
            m
            for m in ("l1", "l2", "kl", "published_kl", "published_l2")
            if m in by_measure
        ):
            one = {
                **about,
                "measure": name,
                "claim": "no separation",
                "effect": "AUC",
            }
            rows.append(
                {**decide(one, by_measure[name].to_numpy(), NO_SEPARATION), **kept}
            )
        for claim, first, second, bounds in COMPARISONS:
            if {first, second} <= set(by_measure):
                gaps = (by_measure[first] - by_measure[second]).to_numpy()
                comparison = {
                    **about,
                    "measure": f"{first} − {second}",
                    "claim": claim,
                    "effect": "difference of AUC",
                }
                rows.append({**decide(comparison, gaps, bounds), **kept})
    found = pd.DataFrame(rows, columns=[*COLUMNS, "data", "protocol", "rule"])
    verdicts = pd.concat([read(directories, "verdicts.csv"), found], ignore_index=True)
    return _of_selections(verdicts, read(directories, "pairs.parquet"))


def _of_selections(verdicts: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """The verdicts with `valid_last`, the lower of two measures' where two are compared; see `claims`."""
    last = pairs[pairs["step"] == pairs.groupby(KEY)["step"].transform("max")]
    counts = last.groupby(KEY)[["off_n_valid", "off_n_pairs"]].sum()
    share = counts["off_n_valid"] / counts["off_n_pairs"]
    rows = verdicts[KEY].itertuples(index=False)
    found = verdicts.assign(
        valid_last=[
            min(share[r.data, r.protocol, m, r.rule] for m in r.measure.split(" − "))
            for r in rows
        ]
    )
    selected = found["claim"].isin(TRENDS) & (found["valid_last"] < 1 - MISSING)
    reasons = found["valid_last"].map(
        "{:.0%} of the entries are valid at the last step: a trend of a selection".format
    )
    return found.assign(
        verdict=found["verdict"].mask(selected, "undecided"),
        reason=found["reason"].mask(selected, reasons),
    )
