"""Tables of `train.numerics`: valid entries, errors relative to the float64 reference, and costs of each estimator."""

from typing import Any

import numpy as np
import pandas as pd

from srel_tf import SRelResult
from train.numerics.reference import TOLERANCE

COUNTS = ["entries", "valid", "outside", "unreferenced"]


def comparison(
    result: SRelResult, measure: str, reference: np.ndarray
) -> dict[str, Any]:
    """Compare the valid entries of one measure with the reference.

    Args:
        result: A measurement.
        measure: The measure.
        reference: S [n_s, n_t]. An entry without a reference is NaN.

    Returns:
        One row of the table. Its columns are counts of entries, the worst error in units of tolerance · (1 + S), and
        the entry with this error. "unreferenced" counts the valid entries without a reference.
    """
    valid, s = result.valid(measure), result.matrix(measure)
    known = np.isfinite(reference)
    with np.errstate(invalid="ignore"):
        error = np.abs(s - reference) / (TOLERANCE[measure] * (1 + reference))
    error = np.where(np.isfinite(s), error, np.inf)
    error = np.where(valid & known, error, -1.0)
    row = {
        "entries": s.size,
        "valid": int(valid.sum()),
        "outside": int((error > 1).sum()),
        "unreferenced": int((valid & ~known).sum()),
        "without_reference": int((~known).sum()),
    }
    source, target = np.unravel_index(error.argmax(), error.shape)
    if error[source, target] < 0:
        return row | {
            "worst": np.nan,
            "worst_s": np.nan,
            "worst_reference": np.nan,
            "worst_pair": "",
        }
    return row | {
        "worst": error[source, target],
        "worst_s": s[source, target],
        "worst_reference": reference[source, target],
        "worst_pair": f"{source} {target}",
    }


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Summarize the rows of all η and measures as one row per (net, stage, estimator)."""
    groups = rows.groupby(["net", "stage", "estimator"], sort=False)
    table = groups[COUNTS].sum()
    table.insert(0, "η", groups["eta"].agg(_range))
    table.insert(2, "valid share", table.pop("valid") / table["entries"])
    table["worst"] = groups["worst"].max()
    for name in ("seconds", "float32_seconds", "forward_seconds"):
        table[name] = groups[name].first()
    table["over_float32"] = table["seconds"] / table["float32_seconds"]
    table["forward_passes"] = table["seconds"] / table["forward_seconds"]
    return table.reset_index()


def _range(etas: pd.Series) -> str:
    """Format the range of several η, where 0 stands for the limit."""
    low, high = etas.min(), etas.max()
    if high == 0:
        return "→ 0"
    return f"{low:.0e}" if low == high else f"{low:.0e} … {high:.0e}"


def as_markdown(table: pd.DataFrame) -> str:
    """Format a summary as Markdown. Errors are in units of tolerance · (1 + S)."""
    lines = [
        "| net | stage | η | estimator | entries | valid | outside | worst error | unreferenced | CPU seconds "
        "| × float32 | forward passes |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        cells = [
            row["net"],
            row["stage"],
            row["η"],
            row["estimator"],
            f"{row['entries']:,}",
            f"{100 * row['valid share']:.1f} %",
            f"{row['outside']:,}",
            _number(row["worst"], ".2f"),
            f"{row['unreferenced']:,}",
            _number(row["seconds"], ".3f"),
            _number(row["over_float32"], ".1f"),
            _number(row["forward_passes"], ".1f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float, form: str) -> str:
    """Format a number. NaN becomes a dash."""
    return "–" if pd.isna(value) else format(value, form)


def total(rows: pd.DataFrame) -> str:
    """Summarize all rows in one line."""
    valid, outside, unreferenced = (
        rows[name].sum() for name in ("valid", "outside", "unreferenced")
    )
    return (
        f"{outside:,} of {valid:,} valid entries are outside the contract; {unreferenced:,} valid entries have no "
        f"reference; "
        f"worst error {_number(rows['worst'].max(), '.2f')} tolerances"
    )
