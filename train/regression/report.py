"""Tables and figures of a finished regression run: Figures 3–5, risks, S_rel of the near and the far pair."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import srel_tf
from srel_tf.plotting import plot_distances, plot_pairs, save_figure
from train.common import cli
from train.common.run_directory import RunDirectory
from train.regression.experiment import TARGET, near_and_far, probe_points


def report(
    directory: RunDirectory, settings: Mapping[str, Any], seeds: Sequence[int]
) -> pd.Series:
    """Write the figures and tables of these seeds.

    Returns:
        Means over seeds, indexed by quantity and step.
    """
    frame, risks = directory.frames(seeds)
    distances = pd.concat(
        [
            srel_tf.read_frame(directory.seed_path(seed) / "distances.parquet")
            for seed in seeds
        ],
        ignore_index=True,
    )
    pairs = pair_curves(frame, probe_points(settings)[2])
    folder = directory.path / "figures"
    folder.mkdir(exist_ok=True)
    written = [srel_tf.write_frame(risks, directory.path / "risks.csv")]
    written += [
        save_figure(f, folder / name)
        for name, f in figures(frame, distances, risks, settings)
    ]
    invalid = (~frame["valid"]).sum()
    print(
        f"{len(frame)} entries of S_rel over {len(seeds)} seed{'s' * (len(seeds) > 1)}; {invalid} of these entries are "
        f"not valid"
    )
    table = _table(pairs, risks)
    print(table.to_string(float_format="{:.3g}".format))
    print("written:", *written, sep="\n  ")
    net = f"width {settings['width']}, depth {settings['depth']}"
    return table.stack().rename(net)


def figures(
    frame: pd.DataFrame,
    distances: pd.DataFrame,
    risks: pd.DataFrame,
    settings: Mapping[str, Any],
) -> Iterator[tuple[str, Figure]]:
    """Draw Figures 3–5 from the frames of all seeds. Figure 3 is left out if the runs do not reach its first step."""
    if distances["step"].notna().any():
        yield (
            "figure_03.png",
            plot_distances(frame[frame["target_id"] == TARGET], distances),
        )
    pairs = pair_curves(frame, probe_points(settings)[2])
    yield "figure_04.png", plot_pairs(pairs)
    yield "figure_05.png", plot_pairs(pairs, risks)


def pair_curves(frame: pd.DataFrame, distances: np.ndarray) -> pd.DataFrame:
    """Select S_rel at each step of two pairs: x' and its nearest source, x' and its farthest source.

    The columns are pair, run, seed, step, srel and valid.
    """
    parts = []
    for name, source in zip(("near", "far"), near_and_far(distances), strict=True):
        part = frame[(frame["target_id"] == TARGET) & (frame["source_id"] == source)]
        length = distances[TARGET, source - len(distances)]
        parts.append(part.assign(pair=f"{name}: ‖x' − x‖ = {length:.2f}"))
    return pd.concat(parts, ignore_index=True)[
        ["pair", "run", "seed", "step", "srel", "valid"]
    ]


def _table(pairs: pd.DataFrame, risks: pd.DataFrame) -> pd.DataFrame:
    """Compute the means over seeds of S_rel of both pairs and of both risks, at a few steps."""
    steps = [s for s in (0, 10, 100, 500, 1000, 2500) if s in set(risks["step"])]
    steps = sorted({*steps, int(risks["step"].max())})
    curves = pairs.assign(
        name="S_rel " + pairs["pair"], value=pairs["srel"].where(pairs["valid"])
    )
    losses = risks.assign(name=risks["split"] + " risk", value=risks["loss"])
    both = pd.concat([curves, losses])[["name", "step", "value"]]
    table = both[both["step"].isin(steps)].pivot_table(
        "value", "name", "step", aggfunc="mean", sort=False
    )[steps]
    table.columns.name = "mean over seeds at step"
    return table


def summary(columns: Sequence[pd.Series], out: Path) -> None:
    """Print and write a table of all nets of a sweep, with the results of `report` at the last step."""
    table = pd.concat(columns, axis=1)
    last = table.index.get_level_values(1).max()
    table = table.xs(last, level=1).T.rename_axis("net").reset_index()
    cli.show(f"all nets at step {last}, means over seeds", table)
    print(f"written: {srel_tf.write_frame(table, out / 'sweep.csv')}")
