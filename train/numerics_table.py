"""The table of `train.numerics`: valid shares and errors of `exact` and `auto` beside the reference in float64."""

import numpy as np
import pandas as pd

TOLERANCE = {"kl": 2e-3, "l1": 1e-3, "l2": 1e-3}


def comparison(measured, measure, reference, known):
    """Valid shares and errors of `exact` and `auto` against the reference."""
    found = {"entries": reference.size, "reference": int(known.sum())}
    for estimator, result in measured.items():
        valid, s = result.valid(measure), result.matrix(measure)
        error = np.abs(s - reference)[valid & known] / (TOLERANCE[measure] * (1 + reference[valid & known]))
        found |= {
            f"{estimator}_valid": int(valid.sum()),
            f"{estimator}_worst": error.max(initial=0.0) if len(error) else np.nan,
            f"{estimator}_outside": int((error > 1).sum()),
            f"{estimator}_unchecked": int((valid & ~known).sum()),
        }
    methods = measured["auto"].matrices[measure].method.tolist()
    limit_rows = methods.count("limit") + methods.count("limit_float64")
    finite_rows = methods.count("finite_step_float64")
    return found | {"sources": len(methods), "limit_rows": limit_rows, "float64_rows": finite_rows}


def summary(rows):
    """All nets together: one row a (stage, η, measure)."""
    groups = rows.groupby(["stage", "eta", "measure"], sort=False)
    total, worst = groups.sum(numeric_only=True), groups.max(numeric_only=True)
    table = pd.DataFrame(index=total.index)
    for estimator in ("exact", "auto"):
        table[f"{estimator} valid"] = total[f"{estimator}_valid"] / total["entries"]
        table[f"{estimator} worst"] = worst[f"{estimator}_worst"]
        table[f"{estimator} outside"] = total[f"{estimator}_outside"]
        table[f"{estimator} unchecked"] = total[f"{estimator}_unchecked"]
    for kind in ("limit", "float64"):
        table[f"rows from {kind}"] = total[f"{kind}_rows"] / total["sources"]
    table["no reference"] = 1 - total["reference"] / total["entries"]
    return table


def as_markdown(table):
    """The table as Markdown; errors in units of tolerance · (1 + S)."""
    names = ["exact valid", "auto valid", "rows from limit", "rows from float64", "exact worst", "auto worst"]
    counts = ["exact outside", "auto outside", "exact unchecked", "auto unchecked"]
    lines = [
        "| stage | η | measure | valid: exact | valid: auto | rows of auto from limit | in float64 "
        "| worst error: exact | worst error: auto | outside | unchecked |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (stage, eta, measure), row in table.iterrows():
        shares = [f"{100 * row[name]:.1f} %" for name in names[:4]]
        errors = ["–" if np.isnan(row[name]) else f"{row[name]:.2f}" for name in names[4:]]
        outside, unchecked = ("{:.0f}, {:.0f}".format(*row[pair]) for pair in (counts[:2], counts[2:]))
        lines.append(
            f"| {stage} | {eta:.0e} | {measure} | {' | '.join(shares)} | {' | '.join(errors)} "
            f"| {outside} | {unchecked} |"
        )
    return "\n".join(lines)


def progress(rows):
    """One line on a net: its losses, valid shares and worst errors."""
    losses = ", ".join(f"{loss:.1e}" for loss in rows["loss"].unique())
    shares = (f"{name} {rows[f'{name}_valid'].sum() / rows['entries'].sum():.1%} valid" for name in ("exact", "auto"))
    worst = max(rows["exact_worst"].max(), rows["auto_worst"].max())
    return f"losses {losses}; {', '.join(shares)}; worst error {worst:.2f}"
