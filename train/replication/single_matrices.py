"""What single matrices of one seed say, which `train.condense --matrices` kept whole: rows of one step each."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

import srel_tf
from srel_tf import auc, rule_names
from train.replication.condensed import INTER, INTRA, Directories


def load_matrices(directories: Directories) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(data, protocol, frame with a column rule) of each directory that has matrices."""
    for (data, protocol), path in directories.items():
        if (path / "matrices.parquet").exists():
            entries = srel_tf.read_frame(path / "matrices.parquet")
            yield data, protocol, entries.assign(rule=rule_names(entries))


def moves(directories: Directories) -> pd.DataFrame:
    """Median ‖Δp‖₁ (at most 2) of one finite fictitious step, at the source, at targets of its class and of others.

    From the matrices that `train.condense --matrices` kept, of one seed: a row a (data, protocol, rule, step).
    """
    rows = []
    for data, protocol, entries in load_matrices(directories):
        finite = entries[
            (entries["measure"] == "l1")
            & entries["method"].str.startswith("finite_step")
        ]
        same = (finite["source_class"] == finite["target_class"]).map(
            {True: INTRA, False: INTER}
        )
        own = finite["source_id"] == finite["target_id"]
        of_rule = finite.assign(kind=same.mask(own, "source")).groupby(
            ["rule", "step", "kind"], sort=False
        )
        table = of_rule["numerator"].median().unstack().reset_index()
        rows.append(table.assign(data=data, protocol=protocol))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def adjusted(directories: Directories) -> pd.DataFrame:
    """AUC of intra- against inter-class pairs once the scales of sources and targets are taken away.

    A row a (data, protocol, rule, measure, step), over the valid entries off the diagonal. auc: all pairs ranked
    together, as `srel_tf.separation` does. auc_rows: within the row of each source, mean over sources. auc_two_way: of
    the residuals of log S after its additive effects of source and target (least squares): how much more a source moves
    targets of its class than both move and are moved anyhow.
    """
    rows = []
    for data, protocol, entries in load_matrices(directories):
        kept = entries[
            entries["valid"] & (entries["source_id"] != entries["target_id"])
        ]
        kept = kept.assign(same=kept["source_class"] == kept["target_class"])
        for (rule, measure, step), one in kept.groupby(
            ["rule", "measure", "step"], sort=False
        ):
            within = [
                _of_kinds(row["srel"], row["same"])
                for _, row in one.groupby("source_id")
            ]
            positive = one[one["srel"] > 0]
            found = {
                "auc": _of_kinds(one["srel"], one["same"]),
                "auc_rows": np.nanmean(within),
            }
            found["auc_two_way"] = _of_kinds(
                two_way_residuals(positive), positive["same"].to_numpy()
            )
            rows.append(
                {
                    "data": data,
                    "protocol": protocol,
                    "rule": rule,
                    "measure": measure,
                    "step": step,
                    **found,
                }
            )
    return pd.DataFrame(rows)


def _of_kinds(values: Any, same: Any) -> float:
    return auc(values[same], values[~same])


def two_way_residuals(entries: pd.DataFrame) -> np.ndarray:
    """log S less the least-squares fit of a term for each source and one for each target."""
    design = pd.get_dummies(
        entries[["source_id", "target_id"]].astype(str), dtype=float
    ).to_numpy()
    logs = np.log(entries["srel"].to_numpy())
    return logs - design @ np.linalg.lstsq(design, logs, rcond=None)[0]
