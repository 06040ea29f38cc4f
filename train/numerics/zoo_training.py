"""Weights of the zoo's nets at each stage of training, cached in a directory so that no training is repeated."""

import json
import sys
import time

import keras
import numpy as np

from srel_tf.files import write_json
from train.numerics.zoo import LOSSES, NETS, STATISTICS, TRAINED

SAVE_EVERY = 120  # Seconds.
EPOCHS = 5  # Number of epochs between two checks of the loss.


class NotConverged(RuntimeError):
    """Training did not reach a stage within the time limit."""


class Training:
    """The weights of one net, stage after stage.

    cache: directory for the weights; None disables the cache. minutes: time limit of each stage's training.
    """

    def __init__(self, name, seed=0, cache=None, minutes=30.0):
        self._name = NETS[name].weights_of or name
        self._net = NETS[self._name]
        self._seed, self._cache, self._minutes = seed, cache, minutes

    def stages(self):
        """Yield (stage, list of arrays, {"loss", "accuracy", "seconds", "epochs"}), in the order of training.

        Raises `NotConverged`.
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

    def _new_model(self):
        keras.utils.set_random_seed(self._seed)
        return self._net.compiled(keras.optimizers.Adam(self._net.learning_rate))

    def _advance(self, model, stage):
        """Train until `stage` is reached."""
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

    def _keep(self, stage, weights, outcome):
        if self._cache:
            self._write(stage, weights)
            write_json(self._path(stage, ".json"), outcome)
            self._path(stage, ".partial.npz").unlink(missing_ok=True)

    def _save_partly(self, stage, model):
        if self._cache:
            self._write(stage, model.get_weights(), ".partial.npz")

    def _path(self, stage, suffix):
        return (
            self._cache
            / f"{self._name}-{stage.replace(' ', '-')}-seed{self._seed}{suffix}"
        )

    def _read(self, stage, suffix=".npz"):
        with np.load(self._path(stage, suffix), allow_pickle=False) as arrays:
            return [arrays[f"{number:05d}"] for number in range(len(arrays.files))]

    def _write(self, stage, weights, suffix=".npz"):
        self._cache.mkdir(parents=True, exist_ok=True)
        path = self._path(stage, suffix)
        unfinished = path.with_suffix(".tmp")
        with open(unfinished, "wb") as file:
            np.savez(
                file, **{f"{number:05d}": array for number, array in enumerate(weights)}
            )
        unfinished.replace(path)


def _reached(stage, loss, accuracy):
    if stage == TRAINED:
        return accuracy == 1.0
    below = LOSSES.get(stage)
    return below is None or loss < below


def take_statistics(model, x):
    """Set the moving statistics of all batch normalisation layers to the statistics of x."""
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
