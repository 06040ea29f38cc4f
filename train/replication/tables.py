"""The paper's claims of Section 2.1 and tables of single matrices, from condensed runs (`train.condense`)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import srel_tf
from srel_tf import OptionError, auc
from srel_tf.hypotheses import COLUMNS, decide

KEY = ["data", "protocol", "measure", "rule"]
RULE = ["update", "estimator", "learning_rate"]
INTRA, INTER = "intra", "inter"
Directories = dict[tuple[str, str], Path]  # Directories by data set and protocol.

# Claims on trends of means. They are undecided if more than the share `MISSING` of the entries is not valid, because
# the valid entries are then a biased selection.
TRENDS = (
    "intra constant in time",
    "inter decreasing",
    "inter decreases more than intra",
)
MISSING = 0.05
# Bounds of the AUC for the claim "no separation": intra is not above inter. An AUC far below 0.5 agrees with the claim.
NO_SEPARATION = (-np.inf, 0.55)
OF_ONE_MEASURE = ("l1", "l2", "kl", "published_kl", "published_l2")
# Claims that compare two measures: (claim, first, second, claimed bounds of AUC(first) − AUC(second)).
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


def load(results: Path) -> Directories:
    """Find the directories DATA-PROTOCOL that `train.condense` wrote. Raises `OptionError` if there is none."""
    directories = {}
    for mark in sorted(results.glob("*-*/separation.parquet")):
        data, _, protocol = mark.parent.name.rpartition("-")
        directories[data, protocol] = mark.parent
    if not directories:
        raise OptionError(
            f"{results} holds no results of train.condense (DATA-PROTOCOL/separation.parquet): run train.condense "
            "first, or give another directory with --results"
        )
    return directories


def read(directories: Directories, name: str) -> pd.DataFrame:
    """Read the file `name` of all directories into one table, with additional columns data and protocol."""
    tables = [
        srel_tf.read_frame(path / name).assign(data=data, protocol=protocol)
        for (data, protocol), path in directories.items()
    ]
    return pd.concat(tables, ignore_index=True)


def claims(directories: Directories) -> pd.DataFrame:
    """Decide the paper's claims of Section 2.1: the claims of `class_claim`, and the claims on separation.

    The claims on separation use one AUC per seed, the mean over the measurements after the first epoch. Differences of
    AUCs are paired by seed. A trend of means is undecided if more than the share `MISSING` of the entries is not valid
    at the last step. The reason is that float32 does not resolve the rows with the smallest denominators, and these
    rows dominate the means.

    Returns:
        One row per verdict. The column `valid_last` is the share of valid entries at the last step.
    """
    separation = read(directories, "separation.parquet")
    later = separation[separation["epoch"] >= 1]
    aucs = later.groupby([*KEY, "update", "estimator", "run"], sort=False)["auc"].mean()
    verdicts = []
    for key, of_rule in aucs.groupby(["data", "protocol", "rule"], sort=False):
        table = of_rule.reset_index().pivot(
            index="run", columns="measure", values="auc"
        )
        data, protocol, rule = key
        about = {
            "hypothesis": "Section 2.1",
            "scope": "AUC after the first epoch",
            "update": rule,
            "estimator": "",
        }

        def verdict(
            measure: str,
            claim: str,
            effect: str,
            values: pd.Series,
            bounds: tuple[float, float],
            about: dict[str, str] = about,
        ) -> dict[str, Any]:
            names = {"measure": measure, "claim": claim, "effect": effect}
            return decide({**about, **names}, values.to_numpy(), bounds)

        of_key = [
            verdict(m, "no separation", "AUC", table[m], NO_SEPARATION)
            for m in OF_ONE_MEASURE
            if m in table
        ] + [
            verdict(
                f"{first} − {second}",
                claim,
                "difference of AUC",
                table[first] - table[second],
                bounds,
            )
            for claim, first, second, bounds in COMPARISONS
            if {first, second} <= set(table)
        ]
        verdicts += [
            {**row, "data": data, "protocol": protocol, "rule": rule} for row in of_key
        ]
    on_measures = pd.DataFrame(verdicts, columns=[*COLUMNS, "data", "protocol", "rule"])
    on_classes = read(directories, "verdicts.csv")
    return _of_selections(
        pd.concat([on_classes, on_measures], ignore_index=True),
        read(directories, "pairs.parquet"),
    )


def _of_selections(verdicts: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Add `valid_last`, and mark trends as undecided if too few entries are valid at the last step.

    For a claim that compares two measures, `valid_last` is the lower of the shares of the two measures.
    """
    last = pairs[pairs["step"] == pairs.groupby(KEY)["step"].transform("max")]
    counts = last.groupby(KEY)[["off_n_valid", "off_n_pairs"]].sum()
    share = counts["off_n_valid"] / counts["off_n_pairs"]
    shares = [
        min(share[data, protocol, measure, rule] for measure in measures.split(" − "))
        for data, protocol, measures, rule in verdicts[KEY].to_numpy()
    ]
    valid = pd.Series(np.array(shares, float), index=verdicts.index)
    is_selection = verdicts["claim"].isin(TRENDS) & (valid < 1 - MISSING)
    reasons = valid.map(
        "only {:.0%} of the entries are valid at the last step: the selection may cause the trend".format
    )
    return verdicts.assign(
        valid_last=valid,
        verdict=verdicts["verdict"].mask(is_selection, "undecided"),
        reason=verdicts["reason"].mask(is_selection, reasons),
    )


def load_matrices(directories: Directories) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield (data, protocol, matrices of one seed with a column rule) for each directory that has matrices.parquet."""
    for (data, protocol), path in directories.items():
        if (path / "matrices.parquet").exists():
            entries = srel_tf.read_frame(path / "matrices.parquet")
            pairs = srel_tf.read_frame(path / "pairs.parquet")
            rules = pairs[[*RULE, "rule"]].drop_duplicates()
            yield data, protocol, entries.merge(rules, on=RULE, how="left")


def moves(directories: Directories) -> pd.DataFrame:
    """Compute how much one finite step changes predictions: medians of ‖Δp‖₁, which is at most 2.

    Returns:
        One row per (data, protocol, rule, step), with the medians at the source itself (column source), at the other
        targets of its class (intra) and at targets of other classes (inter).
    """
    tables = []
    for data, protocol, entries in load_matrices(directories):
        is_finite = entries["method"].str.startswith("finite_step")
        finite = entries[(entries["measure"] == "l1") & is_finite]
        same_class = finite["source_class"] == finite["target_class"]
        kind = same_class.map({True: INTRA, False: INTER})
        kind = kind.mask(finite["source_id"] == finite["target_id"], "source")
        groups = finite.assign(kind=kind).groupby(["rule", "step", "kind"], sort=False)
        table = groups["numerator"].median().unstack().reset_index()
        tables.append(table.assign(data=data, protocol=protocol))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def adjusted(directories: Directories) -> pd.DataFrame:
    """Compute the AUC of intra- against inter-class pairs, before and after adjusting for source and target scales.

    Returns:
        One row per (data, protocol, rule, measure, step). All AUCs are over the valid entries off the diagonal:

        - auc: all pairs are ranked together, as in `srel_tf.separation`.
        - auc_rows: AUC within the row of each source, mean over sources.
        - auc_two_way: AUC of the residuals of log S, after a least-squares fit of a source effect plus a target effect.
          This AUC shows whether a source moves targets of its own class more than the two effects predict.
    """
    rows = []
    for data, protocol, entries in load_matrices(directories):
        off_diagonal = entries["source_id"] != entries["target_id"]
        kept = entries[entries["valid"] & off_diagonal]
        for key, matrix in kept.groupby(["rule", "measure", "step"], sort=False):
            rule, measure, step = key
            positive = matrix[matrix["srel"] > 0]
            within = [_auc(row["srel"], row) for _, row in matrix.groupby("source_id")]
            rows.append(
                {
                    "data": data,
                    "protocol": protocol,
                    "rule": rule,
                    "measure": measure,
                    "step": step,
                    "auc": _auc(matrix["srel"], matrix),
                    "auc_rows": np.nanmean(within),
                    "auc_two_way": _auc(two_way_residuals(positive), positive),
                }
            )
    return pd.DataFrame(rows)


def _auc(values: Any, entries: pd.DataFrame) -> float:
    """Compute the AUC of the values of intra-class entries against the values of inter-class entries."""
    is_intra = (entries["source_class"] == entries["target_class"]).to_numpy()
    return auc(values[is_intra], values[~is_intra])


def two_way_residuals(entries: pd.DataFrame) -> np.ndarray:
    """Return log S minus its least-squares fit by a term for each source plus a term for each target."""
    ids = entries[["source_id", "target_id"]].astype(str)
    design = pd.get_dummies(ids, dtype=float).to_numpy()
    logs = np.log(entries["srel"].to_numpy())
    return logs - design @ np.linalg.lstsq(design, logs, rcond=None)[0]
