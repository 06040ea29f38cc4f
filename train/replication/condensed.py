"""Reading what `train.condense` left of several runs, results/DATA-PROTOCOL each."""

from pathlib import Path

import pandas as pd

import srel_tf
from srel_tf import OptionError

KEY = ["data", "protocol", "measure", "rule"]
INTRA, INTER = "intra", "inter"
Directories = dict[tuple[str, str], Path]  # By data set and protocol.


def load(results: Path) -> Directories:
    """{(data, protocol): directory} of what `train.condense` wrote below `results`; `OptionError` if nothing."""
    found = {}
    for mark in sorted(results.glob("*-*/separation.parquet")):
        data, _, protocol = mark.parent.name.rpartition("-")
        found[data, protocol] = mark.parent
    if not found:
        raise OptionError(
            f"{results} holds no results of train.condense (DATA-PROTOCOL/separation.parquet)"
        )
    return found


def read(directories: Directories, name: str) -> pd.DataFrame:
    """The tables `name` of all directories, with columns data and protocol."""
    tables = [
        srel_tf.read_frame(path / name).assign(data=data, protocol=protocol)
        for (data, protocol), path in directories.items()
    ]
    return pd.concat(tables, ignore_index=True)
