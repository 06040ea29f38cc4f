"""Test S_rel of each estimator against a float64 reference, on real nets, at several training stages, for many η.

    python -m train.numerics                          an MLP, a CNN and a residual net, with logits and with a softmax
    python -m train.numerics --zoo                    also keras.applications, a ViT, an LSTM and others
    python -m train.numerics --nets vit MobileNetV2   only these nets
    python -m train.numerics --out DIR                writes DIR/numerics.csv, DIR/numerics.md; continues a run in DIR
    python -m train.numerics --cache DIR              keeps trained weights in DIR

The contract: the error of a valid entry is at most 1e-3 · (1 + S) for ℓ1 and ℓ2, and at most 2e-3 · (1 + S) for KL.
Errors are given in units of this tolerance, so an entry with an error above 1 is outside the contract. The reference
(`reference.py`) rebuilds each net in float64 and shares no code with srel_tf. Times are processor times, summed over
all threads. Other programs on the machine hardly change these times.
"""

import argparse
import contextlib
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

import srel_tf
from train.classification.experiment import make_repeatable
from train.common import cli
from train.numerics.reference import TOLERANCE, Reference
from train.numerics.table import as_markdown, comparison, summary, total
from train.numerics.zoo import NETS, SMALL, Net
from train.numerics.zoo_training import NotConverged, Training

ESTIMATORS = ("exact", "limit", "auto")


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    p = argparse.ArgumentParser(
        prog="python -m train.numerics",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument(
        "--nets",
        nargs="+",
        choices=list(NETS),
        metavar="NET",
        help=f"choose from {', '.join(NETS)}",
    )
    p.add_argument("--zoo", action="store_true", help="all nets")
    p.add_argument(
        "--stages", nargs="+", metavar="STAGE", help="measure only these stages"
    )
    p.add_argument(
        "--etas",
        nargs="+",
        type=float,
        metavar="ETA",
        help="measure at these η, instead of the η chosen for each net",
    )
    p.add_argument(
        "--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS)
    )
    p.add_argument(
        "--precision",
        help="`precision` of srel_tf.Settings (default: the default of Settings)",
    )
    p.add_argument(
        "--per-class",
        type=int,
        help="number of probe points of each class, instead of the number chosen for each net",
    )
    p.add_argument(
        "--minutes",
        type=float,
        default=30.0,
        help="time limit in minutes for the training from one stage to the next",
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--cache", type=Path, help="directory for the weights of each stage")
    p.add_argument("--out", type=Path, help="directory for the tables")
    p.add_argument(
        "--train-only", action="store_true", help="fill --cache without measuring"
    )
    return p


@cli.command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 1 if a valid entry is outside the contract or a stage was not reached.
    """
    args = parser().parse_args(arguments)
    make_repeatable(args.seed)
    names = args.nets or list(NETS if args.zoo else SMALL)
    table, complete = Table(args), True
    for name in names:
        try:
            of_net(name, args, table)
        except NotConverged as error:
            complete = False
            print(error, file=sys.stderr, flush=True)
    if not args.train_only:
        complete = table.finish(names) and complete
    return 0 if complete else 1


def of_net(name: str, args: argparse.Namespace, table: "Table") -> None:
    """Measure one net at each of its stages, and put the rows into the table.

    Args:
        name: Name of the net in `NETS`.
        args: The options.
        table: The table. Stages of the net that are already in the table are not measured again.

    Raises:
        NotConverged: If a stage is not reached within the time limit.
    """
    net, side = NETS[name], None
    for stage, weights, outcome in Training(
        name, args.seed, args.cache, args.minutes
    ).stages():
        if (
            args.train_only
            or (args.stages and stage not in args.stages)
            or table.has(name, stage)
        ):
            continue
        side = side or Measuring(net, args)
        start = time.perf_counter()
        reference = side.reference(weights)
        between = time.perf_counter()
        rows = list(side.rows(weights, reference))
        table.add(
            [
                {"net": name, "stage": stage, "loss": outcome["loss"], **row}
                for row in rows
            ]
        )
        seconds = f"{between - start:.0f} s reference, {time.perf_counter() - between:.0f} s measuring"
        print(f"{name}, {stage}: {seconds}", file=sys.stderr, flush=True)


class Table:
    """Rows of all nets, written to `--out` after each stage.

    Args:
        args: The options.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._path: Path | None = args.out / "numerics.csv" if args.out else None
        chosen = {
            n: getattr(args, n)
            for n in ("precision", "estimators", "etas", "per_class", "seed")
        }
        self._settings = " ".join(
            f"{name}={value}" for name, value in chosen.items() if value is not None
        )
        self.rows = pd.DataFrame()
        if self._path and self._path.exists():
            self.rows = pd.read_csv(self._path, keep_default_na=True)

    def has(self, name: str, stage: str) -> bool:
        """Return whether the table has rows of this net and stage, measured with the current settings."""
        return bool(len(self.rows)) and bool(
            (self._of(name, stage) & (self.rows["settings"] == self._settings)).any()
        )

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Add the rows of one net and stage. They replace earlier rows of this net and stage."""
        new = pd.DataFrame(rows).assign(settings=self._settings)
        if len(self.rows):
            former = self.rows[~self._of(new["net"][0], new["stage"][0])]
            new = pd.concat([former, new], ignore_index=True) if len(former) else new
        self.rows = new
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self._path.with_suffix(".tmp")
            self.rows.to_csv(unfinished, index=False)
            unfinished.replace(self._path)

    def finish(self, names: Sequence[str]) -> bool:
        """Print and write the summary of these nets.

        Returns:
            True if there are rows of these nets and no entry is outside the contract.
        """
        rows = self.rows[self.rows["net"].isin(names)] if len(self.rows) else self.rows
        if not len(rows):
            print("nothing was measured")
            return False
        text = f"{as_markdown(summary(rows))}\n\n{total(rows)}"
        print(text)
        if self._path:
            self._path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
            print(f"tables: {self._path}, {self._path.with_suffix('.md')}")
        return not rows["outside"].sum()

    def _of(self, name: str, stage: str) -> pd.Series:
        """Return a bool mask that selects the rows of one net and stage."""
        return (self.rows["net"] == name) & (self.rows["stage"] == stage)


class Measuring:
    """A net in float32, instruments for this net, and the float64 reference.

    Args:
        net: The net.
        args: The options.
    """

    def __init__(self, net: Net, args: argparse.Namespace) -> None:
        x, y = net.data()
        self._probe = srel_tf.ProbeSet.sample(
            x, y, per_class=args.per_class or net.per_class, seed=args.seed
        )
        self._etas = tuple(args.etas or net.etas)
        self._net = net.compiled()
        settings = srel_tf.Settings(measures=tuple(TOLERANCE))
        if args.precision is not None:
            settings = replace(settings, precision=args.precision)
        self._instruments = {
            e: self._instrument(replace(settings, estimator=e)) for e in args.estimators
        }
        # For the time in float32, `exact` takes the place of `auto`.
        self._single = {
            e: self._instrument(
                replace(
                    settings,
                    estimator="limit" if e == "limit" else "exact",
                    precision="float32",
                )
            )
            for e in args.estimators
        }
        self._reference = Reference(
            net.compiled, self._probe.x, self._probe.y, net.softmax
        )

    def reference(
        self, weights: list[np.ndarray]
    ) -> dict[float, dict[str, np.ndarray]]:
        """Return the reference {η: {measure: S}}. An entry of S without a reference is NaN. η = 0 is the limit."""
        # The optimizer holds η in float32. A step into a region where the net amplifies 1e9-fold shows the difference.
        held = [float(np.float32(eta)) for eta in self._etas]
        found = self._reference.srel(weights, held)
        by_eta = zip(self._etas, held, strict=True)
        return {0.0: found[0.0]} | {eta: found[used] for eta, used in by_eta}

    def rows(
        self, weights: list[np.ndarray], reference: dict[float, dict[str, np.ndarray]]
    ) -> Iterator[dict[str, Any]]:
        """Measure with each estimator.

        Args:
            weights: All weights of the net.
            reference: S_rel with these weights, as returned by `reference`.

        Yields:
            One row for each (estimator, η, measure). For the limit, η is 0.
        """
        self._net.set_weights(weights)
        forward = self._seconds_of_forward()
        for estimator, instrument in self._instruments.items():
            etas = (0.0,) if estimator == "limit" else self._etas
            results, seconds = {}, []
            for eta in (None, *etas):  # The first call traces the instrument.
                start = time.process_time()
                results[eta] = self._measure(instrument, eta)
                seconds.append(time.process_time() - start)
            about = {
                "estimator": estimator,
                "seconds": statistics.median(seconds[1:]),
                "float32_seconds": self._seconds_in_float32(estimator, etas[0]),
                "forward_seconds": forward,
            }
            for eta in etas:
                for measure in TOLERANCE:
                    found = comparison(results[eta], measure, reference[eta][measure])
                    yield {**about, "eta": eta, "measure": measure, **found}

    def _instrument(self, settings: srel_tf.Settings) -> srel_tf.Instrument:
        """Make an instrument of the net."""
        with _silence():
            return srel_tf.Instrument(self._net, self._probe, settings)

    def _measure(
        self, instrument: srel_tf.Instrument, eta: float | None
    ) -> srel_tf.SRelResult:
        """Measure with step length η. For η = 0 (the limit) and None (the first call), use the first η of the net."""
        self._net.optimizer.learning_rate = eta or self._etas[0]
        with _silence():
            return instrument()

    def _seconds_in_float32(self, estimator: str, eta: float) -> float:
        """Return the processor seconds of a measurement that uses only float32."""
        seconds = []
        for _ in range(2):  # The first call traces the graph.
            start = time.process_time()
            self._measure(self._single[estimator], eta)
            seconds.append(time.process_time() - start)
        return seconds[1]

    def _seconds_of_forward(self) -> float:
        """Return the processor seconds of a float32 forward pass of all probe points."""
        forward = tf.function(lambda x: self._net(x, training=False), jit_compile=False)
        x, seconds = tf.constant(self._probe.x), []
        for _ in range(6):
            start = time.process_time()
            forward(x).numpy()
            seconds.append(time.process_time() - start)
        return statistics.median(seconds[1:])


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Ignore the warnings of a measurement within this block, because the table counts invalid entries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=UserWarning)
        yield
