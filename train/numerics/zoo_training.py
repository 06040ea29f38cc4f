"""Weights of the nets in `zoo.NETS` at each stage of training, cached so that no training is repeated."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from srel_tf.files import write_json
from train.numerics.zoo import LOSSES, NETS, STATISTICS, TRAINED

SAVE_EVERY = 120  # Seconds between two saves of an incomplete training.
EPOCHS = 5  # Number of epochs between two evaluations of the loss.


class NotConverged(RuntimeError):
    """Training did not reach a stage within the time limit."""


class Training:
    """Weights of one net, stage after stage.

    Args:
        name: Name of the net in `NETS`.
        seed: Seed of the weights and of the training.
        cache: Directory in which the weights are kept. None means that they are not kept.
        minutes: Time limit in minutes for the training from one stage to the next.
    """

    def __init__(
        self, name: str, seed: int = 0, cache: Path | None = None, minutes: float = 30.0
    ) -> None:
        self._name = NETS[name].weights_of or name
        self._net = NETS[self._name]
        self._seed, self._cache, self._minutes = seed, cache, minutes

    def stages(self) -> Iterator[tuple[str, list[np.ndarray], dict[str, Any]]]:
        """Train to each stage in order, or read its weights from the cache.

        Yields:
            (stage, weights, {"loss", "accuracy", "seconds", "epochs"}).

        Raises:
            NotConverged: If a stage is not reached within the time limit.
        """
        model = weights = None
        for stage in self._net.stages:
            if self._cache and self._path(stage, ".json").exists():
                weights = self._read(stage)
                outcome = json.loads(
                    self._path(stage, ".json").read_text(encoding="utf-8")
                )
            else:
                model = model or self._new_model()
                if self._cache and self._path(stage, ".partial.npz").exists():
                    model.set_weights(self._read(stage, ".partial.npz"))
                elif weights is not None:
                    model.set_weights(weights)
                outcome = self._advance(model, stage)
                weights = model.get_weights()
                self._keep(stage, weights, outcome)
            yield stage, weights, outcome

    def _new_model(self) -> keras.Model:
        """Make the net with its initial weights, compiled with Adam."""
        keras.utils.set_random_seed(self._seed)
        return self._net.compiled(keras.optimizers.Adam(self._net.learning_rate))

    def _advance(self, model: keras.Model, stage: str) -> dict[str, Any]:
        """Train a model until `stage` is reached.

        Args:
            model: The compiled model.
            stage: Name of the stage.

        Returns:
            {"loss", "accuracy", "seconds", "epochs"}.

        Raises:
            NotConverged: If the stage is not reached within the time limit.
        """
        x, y = self._net.data()
        start = saved = time.perf_counter()
        epochs = 0
        while True:
            if stage in (STATISTICS, TRAINED):
                take_statistics(model, x)
            loss, accuracy = model.evaluate(x, y, batch_size=50, verbose=0)
            now = time.perf_counter()
            if _reached(stage, loss, accuracy):
                break
            if now - start > 60 * self._minutes:
                self._save_partly(stage, model)
                raise NotConverged(
                    f"{self._name}: loss {loss:.1e}, accuracy {accuracy:.3f} after {epochs} epochs, not yet {stage!r}: "
                    + (
                        "run again to continue the training"
                        if self._cache
                        else "give more --minutes, or --cache to continue the training later"
                    )
                )
            if now - saved > SAVE_EVERY:
                self._save_partly(stage, model)
                saved = now
            model.fit(x, y, batch_size=30, epochs=EPOCHS, verbose=0)
            epochs += EPOCHS
        seconds = now - start
        print(
            f"{self._name}, {stage}: loss {loss:.1e}, {epochs} epochs, {seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        return {
            "loss": loss,
            "accuracy": accuracy,
            "seconds": seconds,
            "epochs": epochs,
        }

    def _keep(
        self, stage: str, weights: list[np.ndarray], outcome: dict[str, Any]
    ) -> None:
        """Write weights and outcome of a stage to the cache, and remove the weights of the incomplete training."""
        if self._cache:
            self._write(stage, weights)
            write_json(self._path(stage, ".json"), outcome)
            self._path(stage, ".partial.npz").unlink(missing_ok=True)

    def _save_partly(self, stage: str, model: keras.Model) -> None:
        """Write the weights of an incomplete training to the cache."""
        if self._cache:
            self._write(stage, model.get_weights(), ".partial.npz")

    def _path(self, stage: str, suffix: str) -> Path:
        """Return the file of a stage in the cache."""
        assert self._cache is not None
        name = f"{self._name}-{stage.replace(' ', '-')}-seed{self._seed}{suffix}"
        return self._cache / name

    def _read(self, stage: str, suffix: str = ".npz") -> list[np.ndarray]:
        """Read weights from the cache."""
        with np.load(self._path(stage, suffix), allow_pickle=False) as arrays:
            return [arrays[f"{number:05d}"] for number in range(len(arrays.files))]

    def _write(
        self, stage: str, weights: list[np.ndarray], suffix: str = ".npz"
    ) -> None:
        """Write weights to the cache. If the write is interrupted, the cache gets no incomplete file of this name."""
        path = self._path(stage, suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        arrays: dict[str, Any] = {f"{i:05d}": array for i, array in enumerate(weights)}
        with open(unfinished, "wb") as file:
            np.savez(file, **arrays)
        unfinished.replace(path)


def _reached(stage: str, loss: float, accuracy: float) -> bool:
    """Return whether a training with this loss and accuracy has reached a stage."""
    if stage == TRAINED:
        return accuracy == 1.0
    below = LOSSES.get(stage)
    return below is None or loss < below


def take_statistics(model: keras.Model, x: np.ndarray) -> None:
    """Replace the moving statistics of all batch normalisation layers by the statistics of x."""
    norms = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    momenta = [layer.momentum for layer in norms]
    try:
        for layer in norms:
            layer.momentum = 0.0
        if norms:
            model(x, training=True)
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum
