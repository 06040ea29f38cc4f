"""What `train.errata` reads its effects from: condensed runs, and the published curves where they are at hand."""

import functools
from pathlib import Path
from typing import NamedTuple

import srel_tf
from train.replication.command import central


class Evidence(NamedTuple):
    """results: the directory that holds DATA-PROTOCOL of `train.condense`, for any number of datasets.

    srel, history: the published CIFAR-10 curves as frames (`train.replication`), None where they are not at hand.
    """

    results: Path
    srel: object = None
    history: object = None

    def of_runs(self, protocol, describe):
        """describe(directory) of each dataset measured under the protocol; CIFAR-10's is missed if it is not there."""
        found = self.directories(protocol)
        told = [f"{data}: {describe(path)}" for data, path in found.items()]
        if "cifar10" not in found:
            told.append(
                f"not measured: {self.results / 'cifar10'}-{protocol} is missing"
            )
        return "; ".join(told)

    def directories(self, protocol):
        """{dataset: directory} of the condensed runs of a protocol."""
        found = sorted(
            mark.parent
            for mark in self.results.glob(f"*-{protocol}/separation.parquet")
        )
        return {path.name.removesuffix(f"-{protocol}"): path for path in found}


def figure(path, measure, rule, quantity="auc"):
    """A number of the central table as text, mean [95% interval over seeds]; `replication.central` names them."""
    table = _central(path)
    if (measure, rule, quantity) not in table.index:
        return f"not measured ({measure}, {rule})"
    mean, low, high = table.loc[(measure, rule, quantity), ["mean", "low", "high"]]
    return f"{mean:.3g} [{low:.3g}, {high:.3g}]"


@functools.cache
def _central(path):
    data, _, protocol = path.name.rpartition("-")
    return (
        central({(data, protocol): path})
        .set_index(["measure", "rule", "quantity"])
        .sort_index()
    )


def rank_correlation(path, first, second, rule):
    """Spearman's, over the pairs off the diagonal: mean over runs and measured steps; NaN where not measured."""
    table = srel_tf.read_frame(path / "agreement.parquet")
    ends = table[["first", "second"]].apply(frozenset, axis=1)
    return table[(ends == frozenset((first, second))) & (table["rule"] == rule)][
        "spearman"
    ].mean()
