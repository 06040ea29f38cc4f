"""The paper's hypotheses (Section 1.3) checked on finished runs: a table of verdicts, printed and written.

python -m train.hypotheses results/regression results/theory runs/digits-cnn

RUN_DIR is what `train.regression` (a sweep, too), `train.classification` or `train.theory` left. Each gets a
verdicts.csv.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from srel_tf import (
    FrameError,
    OptionError,
    hypotheses,
    read_frame,
    write_frame,
)
from srel_tf.files import read_json
from train.common import cli
from train.common.seed_marks import finished_seeds
from train.theory import command as theory
from train.theory.cases import Case, cases

PAIRS = "Figure 4's pairs at all their steps"


def load(path):
    """{name: `Case`} of a run directory: one case for a trained net, one a model for the theory's figures."""
    settings = path / "settings.json"
    saved = read_json(settings) if settings.is_file() else {}
    if "figures_6_to_9" in saved:
        return of_theory(path, saved)
    finished = finished_seeds(path)
    for left_out in sorted({*path.glob("seed-*")} - {*finished}):
        print(f"note: {left_out} is not finished and left out")
    names = "frame.parquet", "distances.parquet", "history.csv"
    frame, distances, history = (_together(finished, name) for name in names)
    found = {"": Case(frame, distances, risks=history)}
    if saved.get("experiment") == "regression":
        found[PAIRS] = Case(_most_followed(frame), risks=history, in_time=True)
    return found


def of_theory(path, saved):
    """The models of `train.theory`, computed again for several initial values; `OptionError` for other settings."""
    now = theory.settings(saved.get("variant"), saved.get("seed"))
    names = [
        n for n in sorted({*now, *saved} - {"versions"}) if saved.get(n) != now.get(n)
    ]
    if names or saved.get("variant") != "text":
        raise OptionError(
            f"{path} has figures of other settings ({', '.join(names) or 'variant'}) than those that are checked, the "
            "text's: make them with train.theory"
        )
    print(
        f"note: {path} holds means over initial values; its models are computed again for each of several"
    )
    return cases(saved["seed"])


def _together(seeds, name):
    """The frames of this name of all seeds; None where no seed has one, `FrameError` where some lack it."""
    missing = [str(seed) for seed in seeds if not (seed / name).is_file()]
    if missing and len(missing) < len(seeds):
        raise FrameError(
            f"{', '.join(missing)}: no {name} there; restore it, or delete seed.json to run the seed again"
        )
    return (
        None
        if missing
        else pd.concat([read_frame(seed / name) for seed in seeds], ignore_index=True)
    )


def _most_followed(frame):
    """The pairs that were measured at the most steps."""
    count = frame.groupby(["source_id", "target_id"])["step"].transform("nunique")
    return frame[count == count.max()]


def run_directories(path):
    """`path`, or the run directories of a sweep in it. `OptionError` where nothing is finished."""
    if not path.is_dir():
        raise OptionError(
            f"{path} is no directory: name what train.regression, classification or theory left"
        )
    if any(path.glob("seed-*/seed.json")) or any(path.glob("figure_??.parquet")):
        return [path]
    found = sorted({mark.parents[1] for mark in path.glob("*/seed-*/seed.json")})
    if not found:
        raise OptionError(
            f"{path} holds no finished seed (seed-*/seed.json): run its command to the end first"
        )
    return found


def check(case, confidence):
    """The verdicts of all hypotheses, "undecided" for those that a case has no data for."""
    frame, missing = case.frame, hypotheses.undecided
    if case.distances is not None:
        tables = [hypotheses.proximity_trend(frame, case.distances, confidence)]
    elif case.in_time:
        tables = []
    else:
        tables = [
            missing(
                frame, "1.1(a)", "S_rel falls with distance", "the run has no distances"
            )
        ]
    if case.proximity is not None:
        tables.append(
            hypotheses.bounded_by_proximity(frame, case.proximity, confidence)
        )
    risks, reason = in_steps(case.risks, frame)
    tables.append(hypotheses.two_phases(frame, risks, confidence))
    if risks is None:
        tables.append(
            missing(
                frame,
                "1.2, Figure 5",
                "S_rel rises while the risk falls rapidly",
                reason,
            )
        )
    if (frame["source_class"].astype(str) != "").all():
        tables.append(hypotheses.class_claim(frame, confidence))
    return pd.concat(tables, ignore_index=True)


def in_steps(history, frame):
    """(risks, "") with the steps of a history by epoch, by the frame's own count; (None, why) where there are none."""
    if history is None:
        return None, "the run has no risks"
    if "step" in history:
        return history, ""
    known = frame[frame["epoch"] > 0]
    if known.empty:
        return (
            None,
            "the risks are by epoch, and the frame does not say which step belongs to one",
        )
    history = history.assign(
        step=history["epoch"] * (known["step"] / known["epoch"]).median()
    )
    if history["step"].min() > frame["step"].min():
        return None, (
            f"the risks begin at step {history['step'].min():g} (epoch {history['epoch'].min():g}), S_rel at "
            f"{frame['step'].min():g}: how they fell before is not known"
        )
    return history, ""


@cli.command()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m train.hypotheses", description=__doc__.splitlines()[0]
    )
    parser.add_argument("run_dir", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.95,
        help="of each interval (default: %(default)s)",
    )
    parser.add_argument(
        "--all", action="store_true", help="print a row for each step, too"
    )
    options = parser.parse_args(arguments)
    for path in [
        found for given in options.run_dir for found in run_directories(given)
    ]:
        report(path, options.confidence, options.all)


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
    print(
        "verdicts:",
        ", ".join(
            f"{n} {verdict}" for verdict, n in table["verdict"].value_counts().items()
        ),
    )
    print(f"written: {write_frame(table, path / 'verdicts.csv')}")


def _without_single_steps(table):
    """Without the rows of single steps where there is one for all of them."""
    keys = ["model", "claim", "measure", "update", "estimator", "metric"]
    scoped = table.assign(
        metric=table["scope"].str.split(", (?:step|at all) ", regex=True).str[0]
    )
    together = scoped["scope"].str.contains(", at all ")
    covered = scoped[keys].merge(
        scoped.loc[together, keys].drop_duplicates(), how="left", indicator=True
    )
    return table[together.to_numpy() | (covered["_merge"] == "left_only").to_numpy()]


def as_text(table):
    """The table for a terminal: effect with its interval, the claim's bounds, the verdict."""
    lines = []
    for (model, measure, update, estimator), rows in table.groupby(
        ["model", "measure", "update", "estimator"], sort=False
    ):
        lines.append(
            f"{model}{model and ': '}{measure}, update {update}, estimator {estimator}"
        )
        for row in rows.to_dict("records"):
            numbers = "{effect_size:.3g} [{ci_low:.3g}, {ci_high:.3g}], claimed ({claim_low:.3g}, {claim_high:.3g})"
            scope = row["scope"] and f"; {row['scope']}"
            lines.append(
                f"  {row['verdict']:<12} {row['hypothesis']} {row['claim']}{scope}"
            )
            if row["effect"]:
                lines.append(
                    f"{'':15}{row['effect']}: {numbers.format(**row)}, {row['n_seeds']} seeds"
                )
            if row["verdict"] == "undecided":
                lines.append(f"{'':15}{row['reason']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
