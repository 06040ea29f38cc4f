"""Our condensed runs and the published curves, from which `train.errata` reads the effects of the errata."""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

import srel_tf
from train.replication.command import central

# {name: number}, or {name: (mean, low, high)} for a mean with an interval.
Findings: TypeAlias = dict[str, Any]


class Evidence(NamedTuple):
    """Results from which the checks read effects.

    Attributes:
        results: Directory that holds the condensed runs, as subdirectories DATA-PROTOCOL.
        srel: Published S_rel curves of CIFAR-10, or None.
        history: Published accuracies of CIFAR-10, or None.
    """

    results: Path
    srel: pd.DataFrame | None = None
    history: pd.DataFrame | None = None

    def of_runs(self, protocol: str, measure: Callable[[Path], Findings]) -> Findings:
        """Collect findings from each data set that was measured under a protocol.

        Args:
            protocol: Name of the protocol.
            measure: Function from the directory of a condensed run to its findings.

        Returns:
            The findings. Each name begins with the name of the data set. If there is no CIFAR-10 run of this protocol,
            a finding "not measured: …" with the value NaN is added.
        """
        directories = self.directories(protocol)
        findings = {
            f"{data}: {name}": value
            for data, path in directories.items()
            for name, value in measure(path).items()
        }
        if "cifar10" not in directories:
            missing = f"{self.results / 'cifar10'}-{protocol} is missing"
            findings[f"not measured: {missing}"] = np.nan
        return findings

    def directories(self, protocol: str) -> dict[str, Path]:
        """Return {data set: directory} of the condensed runs of a protocol."""
        marks = self.results.glob(f"*-{protocol}/separation.parquet")
        paths = sorted(mark.parent for mark in marks)
        return {path.name.removesuffix(f"-{protocol}"): path for path in paths}


def central_values(
    path: Path,
    measures: Iterable[str],
    rules: Iterable[str],
    quantities: Sequence[str] = ("auc",),
) -> Findings:
    """Read means over seeds from the central table (`replication.central`) of a condensed run.

    Args:
        path: Directory of the condensed run.
        measures: Measures.
        rules: Update rules, as in the column `rule` of `replication.central`.
        quantities: Quantities of `replication.central`.

    Returns:
        {name: (mean, low, high)} with 95% intervals over seeds. Combinations that the run does not have are left out.
    """
    table = _central(path)
    return {
        f"{quantity} of {measure}, {rule}": tuple(
            table.loc[(measure, rule, quantity), :]
        )
        for rule in rules
        for measure in measures
        for quantity in quantities
        if (measure, rule, quantity) in table.index
    }


@functools.cache
def _central(path: Path) -> pd.DataFrame:
    """Return mean, low and high of a condensed run, indexed by measure, rule and quantity."""
    data, _, protocol = path.name.rpartition("-")
    table = central({(data, protocol): path})
    keys = ["measure", "rule", "quantity"]
    return table.set_index(keys).sort_index()[["mean", "low", "high"]]


def rank_correlation(path: Path, first: str, second: str, rule: str) -> Findings:
    """Return Spearman's correlation of two measures off the diagonal, as {name: mean over runs and steps}.

    The mean is NaN if the run does not have the two measures under this rule.
    """
    table = srel_tf.read_frame(path / "agreement.parquet")
    is_rule = table["rule"] == rule
    is_pair = table[["first", "second"]].apply(set, axis=1) == {first, second}
    correlation = table.loc[is_rule & is_pair, "spearman"].mean()
    return {f"rank correlation of {first} and {second}, {rule}": correlation}


def extremes(name: str, values: npt.ArrayLike) -> Findings:
    """Return the lowest and the highest of some values as two findings."""
    return {f"{name}, lowest": np.min(values), f"{name}, highest": np.max(values)}
