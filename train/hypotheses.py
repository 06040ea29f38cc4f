"""The paper's hypotheses (Section 1.3) checked on finished runs: a table of verdicts, printed and written.

python -m train.hypotheses results/regression results/theory runs/digits-cnn

RUN_DIR is what `train.regression`, `train.classification` or `train.theory` left. Each gets a verdicts.csv.
"""

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

from srel_tf import FrameError, OptionError, SRelError, hypotheses, read_frame, write_frame
from train.theory_cases import Case, cases


def load(path):
    """{name: `Case`} of a run directory: one case for a trained net, one a model for the theory's figures."""
    if not path.is_dir():
        raise OptionError(f"{path} is no directory: name what train.regression, classification or theory left")
    settings = path / "settings.json"
    if settings.is_file() and "figures_6_to_9" in (saved := json.loads(settings.read_text(encoding="utf-8"))):
        return cases(saved["seed"])
    finished = sorted(file.parent for file in path.glob("seed-*/seed.json"))
    if not finished:
        raise OptionError(f"{path} holds no finished seed (seed-*/seed.json): run its command to the end first")
    files = {name: [read_frame(f) for d in finished if (f := d / name).is_file()] for name in FILES}
    frame, distances, history = (pd.concat(f, ignore_index=True) if f else None for f in files.values())
    risks = history if history is not None and "step" in history else None
    return {"": Case(frame, distances, risks=risks)}


FILES = ("frame.parquet", "distances.parquet", "history.csv")


def check(case, confidence):
    """The verdicts of all hypotheses that a case has the data for."""
    tables = []
    if case.distances is not None:
        tables.append(hypotheses.proximity_trend(case.frame, case.distances, confidence))
    if case.proximity is not None:
        tables.append(hypotheses.bounded_by_proximity(case.frame, case.proximity, confidence))
    tables.append(hypotheses.two_phases(case.frame, case.risks, confidence))
    if (case.frame["source_class"].astype(str) != "").all():
        tables.append(hypotheses.class_claim(case.frame, confidence))
    return pd.concat(tables, ignore_index=True)


def main(arguments=None):
    """Run the command; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.hypotheses", description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--confidence", type=float, default=0.95, help="of each interval (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="print a row for each step, too")
    options = parser.parse_args(arguments)
    try:
        for path in options.run_dir:
            report(path, options.confidence, options.all)
    except (SRelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def report(path, confidence, every_step=False):
    """Check a run directory, print its table and write verdicts.csv into it."""
    tables = []
    for name, case in load(path).items():
        try:
            tables.append(check(case, confidence).assign(model=name))
        except FrameError as error:
            raise FrameError(f"{path}{name and ', '}{name}: {error}") from error
    table = pd.concat(tables, ignore_index=True)
    table = table[["model", *hypotheses.COLUMNS]]
    print(f"\n{path}")
    print(as_text(table if every_step else _without_single_steps(table)))
    print("verdicts:", ", ".join(f"{n} {verdict}" for verdict, n in table["verdict"].value_counts().items()))
    print(f"written: {write_frame(table, path / 'verdicts.csv')}")


def _without_single_steps(table):
    """Without the rows of single steps where there is one for all of them."""
    keys = ["model", "claim", "measure", "update", "estimator", "metric"]
    scoped = table.assign(metric=table["scope"].str.split(", (?:step|at all) ", regex=True).str[0])
    together = scoped["scope"].str.contains(", at all ")
    covered = scoped[keys].merge(scoped.loc[together, keys].drop_duplicates(), how="left", indicator=True)
    return table[together.to_numpy() | (covered["_merge"] == "left_only").to_numpy()]


def as_text(table):
    """The table for a terminal: effect with its interval, the claim's bounds, the verdict."""
    lines = []
    for (model, measure, update, estimator), rows in table.groupby(
        ["model", "measure", "update", "estimator"], sort=False
    ):
        lines.append(f"{model}{model and ': '}{measure}, update {update}, estimator {estimator}")
        for row in rows.to_dict("records"):
            numbers = "{effect_size:.3g} [{ci_low:.3g}, {ci_high:.3g}], claimed ({claim_low:.3g}, {claim_high:.3g})"
            scope = row["scope"] and f"; {row['scope']}"
            lines.append(f"  {row['verdict']:<12} {row['hypothesis']} {row['claim']}{scope}")
            if row["effect"]:
                lines.append(f"{'':15}{row['effect']}: {numbers.format(**row)}, {row['n_seeds']} seeds")
            if row["verdict"] == "undecided":
                lines.append(f"{'':15}{row['reason']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
