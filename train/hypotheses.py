"""Check the paper's hypotheses (Section 1.3) on finished runs; print and write a table of verdicts.

python -m train.hypotheses results/regression results/theory runs/digits-cnn

Each RUN_DIR is a directory of `train.regression` (also of a sweep), `train.classification` or `train.theory`. The
command writes verdicts.csv into each run directory.
"""

import argparse
import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

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

FIGURE_4 = "Figure 4's pairs at all their steps"


def load(path: Path) -> dict[str, Case]:
    """Load a run directory.

    Args:
        path: Directory of a trained net, or of the figures of `train.theory`.

    Returns:
        {name: case}. The name of the case of a trained net is "". A regression also has the case `FIGURE_4`. The
        figures of `train.theory` have one case for each model.

    Raises:
        FrameError: If only some of the seeds have a file.
        OptionError: If the settings of the theory's figures are not those of the paper's text, or if there is no
            finished seed.
    """
    settings = path / "settings.json"
    saved = read_json(settings) if settings.is_file() else {}
    if "figures_6_to_9" in saved:
        return load_theory(path, saved)
    finished = finished_seeds(path)
    for unfinished in sorted({*path.glob("seed-*")} - {*finished}):
        print(f"note: {unfinished} is not finished, and is left out")
    frame = _of_all_seeds(finished, "frame.parquet")
    if frame is None:
        raise OptionError(
            f"{path} holds neither a finished seed nor the settings.json of train.theory: complete the run first"
        )
    if saved.get("experiment") == "regression":
        # The three probes of the run measure the same pairs at different steps.
        frame = frame.assign(name="")
    distances = _of_all_seeds(finished, "distances.parquet")
    history = _of_all_seeds(finished, "history.csv")
    loaded = {"": Case(frame, distances, risks=history)}
    if saved.get("experiment") == "regression":
        loaded[FIGURE_4] = Case(_most_followed(frame), risks=history, in_time=True)
    return loaded


def load_theory(path: Path, saved: dict[str, Any]) -> dict[str, Case]:
    """Compute the models of `train.theory` again for several initial values.

    Args:
        path: Directory of the figures.
        saved: Settings of the figures.

    Returns:
        {name of the model: case}.

    Raises:
        OptionError: If the settings are not those of the paper's text.
    """
    now = theory.settings(saved.get("variant", ""), saved.get("seed", 0))
    names = sorted({*now, *saved} - {"versions"})
    different = [name for name in names if saved.get(name) != now.get(name)]
    if different or saved.get("variant") != "text":
        which = ", ".join(different) or "variant"
        raise OptionError(
            f"{path} has figures with settings other than the text's ({which}), which cannot be checked: make the "
            "figures again with train.theory"
        )
    print(
        f"note: {path} holds means over initial values; the hypotheses need S_rel of single initial values, which is "
        "computed again"
    )
    return cases(saved["seed"])


def _of_all_seeds(seeds: Sequence[Path], name: str) -> pd.DataFrame | None:
    """Read the file `name` of each seed and join the frames.

    Args:
        seeds: Directories of the seeds.
        name: Name of the file.

    Returns:
        The joined frame; None if no seed has the file.

    Raises:
        FrameError: If only some seeds have the file.
    """
    missing = [str(seed) for seed in seeds if not (seed / name).is_file()]
    if len(missing) == len(seeds):
        return None
    if missing:
        raise FrameError(
            f"{', '.join(missing)}: {name} is missing; restore it, or delete seed.json to run the seed again"
        )
    return pd.concat([read_frame(seed / name) for seed in seeds], ignore_index=True)


def _most_followed(frame: pd.DataFrame) -> pd.DataFrame:
    """Select the pairs that were measured at the most steps."""
    count = frame.groupby(["source_id", "target_id"])["step"].transform("nunique")
    return frame[count == count.max()]


def run_directories(path: Path) -> list[Path]:
    """List a run directory, or the run directories of a sweep.

    Args:
        path: The run directory, or the directory of the sweep.

    Returns:
        The run directories.

    Raises:
        OptionError: If `path` is not a directory, or if no run directory holds a finished seed.
    """
    if not path.is_dir():
        raise OptionError(
            f"{path} is not a directory: give a directory of train.regression, classification or theory"
        )
    if any(path.glob("seed-*/seed.json")) or any(path.glob("figure_??.parquet")):
        return [path]
    runs = sorted({mark.parents[1] for mark in path.glob("*/seed-*/seed.json")})
    if not runs:
        raise OptionError(
            f"{path} holds no finished seed (seed-*/seed.json): complete the run first"
        )
    return runs


def check(case: Case, confidence: float) -> pd.DataFrame:
    """Check all hypotheses on a case.

    Args:
        case: A frame, and the distances, proximities and risks that belong to it.
        confidence: Confidence level of the intervals.

    Returns:
        Frame with the columns `srel_tf.hypotheses.COLUMNS`. A hypothesis is "undecided" if the case has no data for it.
    """
    frame, undecided = case.frame, hypotheses.undecided
    tables = []
    if case.distances is not None:
        tables.append(hypotheses.proximity_trend(frame, case.distances, confidence))
    elif not case.in_time:
        claim, reason = "S_rel falls with distance", "the run has no distances"
        tables.append(undecided(frame, "1.1(a)", claim, reason))
    if case.proximity is not None:
        bounded = hypotheses.bounded_by_proximity(frame, case.proximity, confidence)
        tables.append(bounded)
    risks, reason = in_steps(case.risks, frame)
    tables.append(hypotheses.two_phases(frame, risks, confidence))
    if risks is None:
        claim = "S_rel rises while the risk falls rapidly"
        tables.append(undecided(frame, "1.2, Figure 5", claim, reason))
    if (frame["source_class"].astype(str) != "").all():
        tables.append(hypotheses.class_claim(frame, confidence))
    return pd.concat(tables, ignore_index=True)


def in_steps(
    history: pd.DataFrame | None, frame: pd.DataFrame
) -> tuple[pd.DataFrame | None, str]:
    """Add the steps of the frame to a history that is given by epoch.

    Args:
        history: Risks with a column step or epoch, or None.
        frame: S_rel frame.

    Returns:
        (risks with a column step, ""), or (None, reason) if the steps are unknown.
    """
    if history is None:
        return None, "the run has no risks"
    if "step" in history:
        return history, ""
    known = frame[frame["epoch"] > 0]
    if known.empty:
        reason = "the risks are by epoch, and the frame has no epochs from which to compute steps"
        return None, reason
    steps_an_epoch = (known["step"] / known["epoch"]).median()
    risks = history.assign(step=history["epoch"] * steps_an_epoch)
    first_risk, first_step = risks["step"].min(), frame["step"].min()
    if first_risk > first_step:
        return None, (
            f"the risks begin at step {first_risk:g} (epoch {history['epoch'].min():g}), but S_rel "
            f"begins at step {first_step:g}: the risks between these steps are unknown"
        )
    return risks, ""


@cli.command()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m train.hypotheses", description=__doc__.splitlines()[0]
    )
    parser.add_argument("run_dir", nargs="+", type=Path, metavar="RUN_DIR")
    level = "confidence level of each interval (default: %(default)s)"
    parser.add_argument("--confidence", type=float, default=0.95, help=level)
    every = "also print a row for each step"
    parser.add_argument("--all", action="store_true", help=every)
    options = parser.parse_args(arguments)
    runs = [run for given in options.run_dir for run in run_directories(given)]
    for run in runs:
        report(run, options.confidence, options.all)


def report(path: Path, confidence: float, every_step: bool = False) -> None:
    """Check a run directory, print its table and write verdicts.csv into it.

    Args:
        path: The run directory.
        confidence: Confidence level of the intervals.
        every_step: Whether to also print a row for each step.

    Raises:
        FrameError: If a frame of the run cannot be checked.
    """
    tables = []
    for name, case in load(path).items():
        try:
            tables.append(check(case, confidence).assign(model=name))
        except FrameError as error:
            place = f"{path}, {name}" if name else path
            raise FrameError(f"{place}: {error}") from error
    table = pd.concat(tables, ignore_index=True)[["model", *hypotheses.COLUMNS]]
    counts = table["verdict"].value_counts().items()
    print(f"\n{path}")
    print(as_text(table if every_step else _without_single_steps(table)))
    print("verdicts:", ", ".join(f"{n} {verdict}" for verdict, n in counts))
    print(f"written: {write_frame(table, path / 'verdicts.csv')}")


def _without_single_steps(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out the rows of single steps if there is a row for all steps."""
    keys = ["model", "claim", "name", "measure", "update", "estimator", "metric"]
    metric = table["scope"].str.split(", (?:step|at all) ", regex=True).str[0]
    scoped = table.assign(metric=metric)
    is_together = scoped["scope"].str.contains(", at all ")
    together = scoped.loc[is_together, keys].drop_duplicates()
    merged = scoped[keys].merge(together, how="left", indicator=True)
    is_alone = merged["_merge"] == "left_only"
    return table[is_together.to_numpy() | is_alone.to_numpy()]


def as_text(table: pd.DataFrame) -> str:
    """Format the table for a terminal: each verdict with the effect, its interval and the bounds of the claim."""
    lines = []
    keys = ["model", "name", "measure", "update", "estimator"]
    for (model, name, *options), rows in table.groupby(keys, sort=False):
        prefix = f"{model}: " if model else ""
        probe = f", probe {name}" if name else ""
        lines.append("{}{}, update {}, estimator {}{}".format(prefix, *options, probe))
        for row in rows.to_dict("records"):
            lines += _lines_of_row(row)
    return "\n".join(lines)


def _lines_of_row(row: Mapping[Hashable, Any]) -> list[str]:
    """Format a verdict: the claim, the effect and interval if there is an effect, and the reason if undecided."""
    indent = " " * 15
    scope = f"; {row['scope']}" if row["scope"] else ""
    lines = [f"  {row['verdict']:<12} {row['hypothesis']} {row['claim']}{scope}"]
    if row["effect"]:
        interval = (
            f"{row['effect_size']:.3g} [{row['ci_low']:.3g}, {row['ci_high']:.3g}]"
        )
        claimed = f"({row['claim_low']:.3g}, {row['claim_high']:.3g})"
        lines.append(
            f"{indent}{row['effect']}: {interval}, claimed {claimed}, {row['n_seeds']} seeds"
        )
    if row["verdict"] == "undecided":
        lines.append(f"{indent}{row['reason']}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
