"""Sources of the effects in `train.errata`: condensed runs, and the published curves if available."""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

import srel_tf
from train.replication.command import central


class Evidence(NamedTuple):
    """Directory of the condensed runs DATA-PROTOCOL, and the published CIFAR-10 curves as frames or None."""

    results: Path
    srel: object = None
    history: object = None

    def of_runs(self, protocol, measure):
        """Return the findings `measure(directory)` of each dataset of the protocol.

        If CIFAR-10 is missing, a finding says so.
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

    def directories(self, protocol):
        """Return {dataset: directory} of the condensed runs of a protocol."""
        marks = self.results.glob(f"*-{protocol}/separation.parquet")
        paths = sorted(mark.parent for mark in marks)
        return {path.name.removesuffix(f"-{protocol}"): path for path in paths}


def central_values(path, measures, rules, quantities=("auc",)):
    """Return {name: (mean, low, high)} of quantities in `replication.central`, with 95% intervals over seeds."""
    table = _central(path)
    return {
        f"{quantity} of {measure}, {rule}": tuple(table.loc[(measure, rule, quantity)])
        for rule in rules
        for measure in measures
        for quantity in quantities
        if (measure, rule, quantity) in table.index
    }


@functools.cache
def _central(path):
    data, _, protocol = path.name.rpartition("-")
    table = central({(data, protocol): path})
    keys = ["measure", "rule", "quantity"]
    return table.set_index(keys).sort_index()[["mean", "low", "high"]]


def rank_correlation(path, first, second, rule):
    """Return {name: Spearman's correlation of two measures off the diagonal}, mean over runs and steps, or NaN."""
    table = srel_tf.read_frame(path / "agreement.parquet")
    is_rule = table["rule"] == rule
    is_pair = table[["first", "second"]].apply(set, axis=1) == {first, second}
    correlation = table.loc[is_rule & is_pair, "spearman"].mean()
    return {f"rank correlation of {first} and {second}, {rule}": correlation}


def extremes(name, values):
    """Return {name: lowest value, name: highest value}."""
    return {f"{name}, lowest": np.min(values), f"{name}, highest": np.max(values)}
