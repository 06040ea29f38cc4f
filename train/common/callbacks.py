"""A clock and callbacks for `fit`: loss and accuracy, one line of progress per epoch, and a stop condition."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import pandas as pd

from srel_tf import Checkpoint


class Clock:
    """Seconds of work on a seed, including the work of earlier processes up to their last saved state."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def state(self) -> float:
        return round(time.perf_counter() - self._start, 1)

    @state.setter
    def state(self, before: float) -> None:
        self._start -= before


class StopWhen(keras.callbacks.Callback):
    """Calls `condition` after each update, and stops the training if the condition is true.

    If `condition` is None, this callback never stops the training.
    """

    def __init__(
        self, condition: Callable[[], bool] | None, checkpoint: Checkpoint
    ) -> None:
        super().__init__()
        self._condition, self._checkpoint = condition, checkpoint

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if self._condition and self._condition():
            self._checkpoint.request_stop()


class Lines(keras.callbacks.Callback):
    """Prints one line per epoch. This callback is used when several seeds are trained at the same time."""

    def __init__(self, seed: int, epochs: int) -> None:
        super().__init__()
        self._seed, self._epochs = seed, epochs

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        values = ", ".join(
            f"{name} {logs[name]:.4f}"
            for name in ("loss", "accuracy", "val_loss", "val_accuracy")
        )
        print(
            f"seed {self._seed}: epoch {epoch + 1} of {self._epochs}, {values}",
            flush=True,
        )


class History(keras.callbacks.Callback):
    """Records loss and accuracy of each epoch as a table. `diverged` is the last loss that was not finite, or None."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._rows: list[dict[str, Any]] = []
        self.diverged: float | None = None

    @property
    def state(self) -> dict[str, Any]:
        return {"rows": self._rows, "diverged": self.diverged}

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        self._rows, self.diverged = list(state["rows"]), state["diverged"]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not np.isfinite(logs["loss"]):
            self.diverged = float(logs["loss"])

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        for split, prefix in (("train", ""), ("test", "val_")):
            values = {name: logs[prefix + name] for name in ("loss", "accuracy")}
            run = {
                "run": f"seed-{self._seed}",
                "seed": self._seed,
                "epoch": epoch + 1,
                "split": split,
            }
            self._rows.append({**run, **values})

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(
            self._rows, columns=["run", "seed", "epoch", "split", "loss", "accuracy"]
        )
