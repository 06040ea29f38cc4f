"""The tables of `train.numerics`: valid shares, errors (against float64) and costs of each estimator."""

import numpy as np
import pandas as pd

from train.numerics.reference import TOLERANCE

COUNTS = ["entries", "valid", "outside", "unreferenced"]


def comparison(result, measure, reference):
    """Return the counts and the worst error of the valid entries of one measure, as a dict.

    reference: S [n_s, n_t], NaN for unresolved entries. The error is in units of tolerance · (1 + S). unreferenced:
    valid entries without a reference.
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


def summary(rows):
    """Combine the rows of each η and measure into one row per (net, stage, estimator)."""
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


def _range(etas):
    low, high = etas.min(), etas.max()
    if high == 0:
        return "→ 0"
    return f"{low:.0e}" if low == high else f"{low:.0e} … {high:.0e}"


def as_markdown(table):
    """Format the summary as Markdown, with errors in units of tolerance · (1 + S)."""
    lines = [
        "| net | stage | η | estimator | entries | valid | outside | worst error | unreferenced | CPU seconds "
        "| × float32 | forward passes |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table.itertuples(index=False):
        cells = [
            row.net,
            row.stage,
            getattr(row, "η", row[2]),
            row.estimator,
            f"{row.entries:,}",
        ]
        cells += [
            f"{100 * row[5]:.1f} %",
            f"{row.outside:,}",
            _number(row.worst, ".2f"),
            f"{row.unreferenced:,}",
        ]
        cells += [
            _number(row.seconds, ".3f"),
            _number(row.over_float32, ".1f"),
            _number(row.forward_passes, ".1f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value, form):
    return "–" if pd.isna(value) else format(value, form)


def total(rows):
    """Summarise all rows in one line."""
    valid, outside, unreferenced = (
        rows[name].sum() for name in ("valid", "outside", "unreferenced")
    )
    return (
        f"{outside:,} of {valid:,} valid entries outside the contract, {unreferenced:,} of them without a reference; "
        f"worst error {_number(rows['worst'].max(), '.2f')} tolerances"
    )
