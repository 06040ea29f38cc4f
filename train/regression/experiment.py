"""One seed of the regression of Section 2.2: data, net, probes, `fit`, and results.

x ~ N(0, I), y = ‖x‖₁. The paper's table of the architecture is missing in the text that we have. We chose width, depth,
dimension, learning rate and batch size. A net whose first layer is narrower than the input ignores a direction of the
input and cannot represent ‖x‖₁. The problem is then non-realisable, as the paper says. (With d + 2 or more units in
each hidden layer, where d is the dimension of x, there are weights that compute ‖x‖₁ exactly:
‖x‖₁ = 2 Σ relu(x_i) − relu(Σ x_i) + relu(−Σ x_i).)
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

import srel_tf
from srel_tf.files import lock
from train.classification.experiment import DivergedError, make_repeatable
from train.common.run_directory import RunDirectory

FIGURE_3 = (100, 200, 400, 800, 1600, 2400)  # Steps of Figure 3 in the paper.
RISKS_EVERY = 20
FOLLOWED = 8  # Number of sources that are measured for all targets at many steps.
# The training has diverged if the loss exceeds its lowest value by this factor. In float64 such a loss may be finite.
GROWN = 1e3
FRESH = 20_000  # Number of examples for the estimate of the population risk.
TARGET = 0  # The id of x', the target of Figures 3–5.


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Use this dtype as the floatx and the dtype policy of Keras within this block."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


def draw(count: int, dimension: int, *seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw x ~ N(0, I) [count, dimension] and y = ‖x‖₁ [count, 1]."""
    x = np.random.default_rng(seed).normal(size=(count, dimension))
    return x, np.abs(x).sum(axis=1, keepdims=True)


def probe_points(
    settings: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw x and y of the targets (x' is the first) and of the sources. The points are the same for all seeds.

    Returns:
        x and y, with the targets before the sources, and the distances [targets, sources].
    """
    x, y = draw(
        settings["targets"] + settings["sources"],
        settings["dimension"],
        settings["probe_seed"],
        1,
    )
    targets, sources = np.split(x, [settings["targets"]])
    return x, y, np.linalg.norm(targets[:, None] - sources[None], axis=2)


def near_and_far(distances: np.ndarray) -> np.ndarray:
    """Find the ids of the sources of Figures 4 and 5: the nearest to x' and the farthest from x'."""
    return len(distances) + np.array(
        [distances[TARGET].argmin(), distances[TARGET].argmax()]
    )


def followed(distances: np.ndarray) -> np.ndarray:
    """Choose the ids of the sources that are measured at many steps.

    All sources are ordered by distance from x'. From this order, sources at equal intervals are chosen, including the
    nearest and the farthest.
    """
    order = np.argsort(distances[TARGET])
    return (
        len(distances)
        + order[np.linspace(0, len(order) - 1, min(FOLLOWED, len(order))).astype(int)]
    )


def in_time(step: int) -> bool:
    """Return whether the `followed` sources are measured at this step: every 5th step up to 200, then every 25th."""
    return step % (5 if step <= 200 else 25) == 0


def build(settings: Mapping[str, Any]) -> srel_tf.SRelModel:
    """Build a feed-forward ReLU net (He normal), compiled with SGD and the squared error."""
    inputs = x = keras.Input((settings["dimension"],))
    for _ in range(settings["depth"]):
        x = keras.layers.Dense(
            settings["width"], activation="relu", kernel_initializer="he_normal"
        )(x)
    model = srel_tf.SRelModel(inputs, keras.layers.Dense(1)(x))
    model.compile(
        keras.optimizers.SGD(settings["learning_rate"]),
        keras.losses.MeanSquaredError(),
        jit_compile=False,
    )
    return model


def attach(model: srel_tf.SRelModel, settings: Mapping[str, Any], seed: int) -> None:
    """Attach three probes. At each step exactly one of them measures.

    "figure 3" measures all targets and sources at the steps of Figure 3. "followed" measures all targets and the
    `followed` sources at the other steps for which `in_time` is true. "near and far" measures x', its nearest source
    and its farthest source at all remaining steps.
    """
    x, y, distances = probe_points(settings)
    everything, last = np.arange(len(x)), settings["iterations"]
    targets, sources = np.split(everything, [len(distances)])
    for name, of_targets, of_sources, every in (
        ("figure 3", targets, sources, lambda step: step in FIGURE_3),
        (
            "followed",
            targets,
            followed(distances),
            lambda step: step not in FIGURE_3 and in_time(step),
        ),
        (
            "near and far",
            [TARGET],
            near_and_far(distances),
            lambda step: step not in FIGURE_3 and not in_time(step),
        ),
    ):
        model.attach_probe(
            srel_tf.ProbeSet(
                x, y, targets=np.asarray(of_targets), sources=of_sources, name=name
            ),
            every=_until(last, every),
            measures=(
                "l1",
            ),  # ℓ1 is |Δf| of Definition 1, because outputs are scalars.
            estimator=settings["estimator"],
            run=f"seed-{seed}",
            seed=seed,
        )


def _until(last: int, is_due: Callable[[int], bool]) -> Callable[[int], bool]:
    return lambda step: step <= last and is_due(step)


class Watch(keras.callbacks.Callback):
    """Records risks at every 20th step and feature distances at the steps of Figure 3, and prints progress."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        seed: int,
        training: tuple[np.ndarray, np.ndarray],
        orphaned: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__()
        self._settings, self._seed, self._orphaned = settings, seed, orphaned
        self._sets = {
            "empirical": training,
            "population": draw(FRESH, settings["dimension"], settings["probe_seed"], 2),
        }
        self._x, _, distances = probe_points(settings)
        self._targets = len(distances)
        self._risks: list[dict[str, Any]] = []
        self._distances = [self._pairs(distances, "input", pd.NA)]
        self._lowest = np.inf
        self.diverged: float | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._start, self._features = (
            time.perf_counter(),
            keras.Model(self.model.inputs, self.model.layers[-2].output),
        )
        self._look(0)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._lowest = min(self._lowest, logs["loss"])
        if not logs["loss"] <= GROWN * self._lowest:
            self.diverged, self.model.stop_training = float(logs["loss"]), True
        self._look(int(self.model.optimizer.iterations))

    def _look(self, step: int) -> None:
        last = self._settings["iterations"]
        if step > last:
            return
        if step % RISKS_EVERY == 0 or step == last:
            if self._orphaned and self._orphaned():
                raise KeyboardInterrupt
            for split, (x, y) in self._sets.items():
                loss = float(
                    np.mean(
                        (self.model(tf.constant(x, self.model.dtype)).numpy() - y) ** 2
                    )
                )
                self._risks.append(
                    {
                        "run": f"seed-{self._seed}",
                        "seed": self._seed,
                        "step": step,
                        "split": split,
                        "loss": loss,
                    }
                )
        if step in FIGURE_3:
            features = self._features(tf.constant(self._x, self.model.dtype)).numpy()
            targets, sources = np.split(features, [self._targets])
            distances = np.linalg.norm(targets[:, None] - sources[None], axis=2)
            self._distances.append(self._pairs(distances, "last-layer features", step))
        if step in (last // 5 * i for i in range(1, 5)) or step == last:
            risks = ", ".join(
                f"{r['split']} risk {r['loss']:.3g}" for r in self._risks[-2:]
            )
            seconds = time.perf_counter() - self._start
            print(
                f"  seed {self._seed}, step {step} of {last}: {risks}; {seconds:.0f} s",
                flush=True,
            )

    def _pairs(self, distances: np.ndarray, metric: str, step: Any) -> pd.DataFrame:
        targets, sources = np.indices(distances.shape)
        columns = {
            "target_id": targets.ravel(),
            "source_id": (self._targets + sources).ravel(),
        }
        frame = pd.DataFrame(
            {**columns, "distance": distances.ravel(), "metric": metric}
        )
        return frame.assign(
            run=f"seed-{self._seed}",
            seed=self._seed,
            step=pd.array([step] * len(frame), dtype="Int64"),
        )

    def risks(self) -> pd.DataFrame:
        return pd.DataFrame(
            self._risks, columns=["run", "seed", "step", "split", "loss"]
        )

    def distances(self) -> pd.DataFrame:
        """Return a table of the distances of inputs and of features at each step of Figure 3 so far."""
        own, *features = self._distances
        own_at = [own.assign(step=f["step"]) for f in features]
        return pd.concat([*own_at, *features] or [own.iloc[:0]], ignore_index=True)


def train(
    settings: Mapping[str, Any],
    seed: int,
    directory: RunDirectory,
    orphaned: Callable[[], bool] | None = None,
) -> None:
    """Train and measure one seed, and write the results to a `RunDirectory`.

    `orphaned` is called regularly. If it returns True, the training saves and stops.

    Raises:
        DivergedError: If the loss exceeds `GROWN` times its lowest value, or is NaN. Earlier measurements are saved.
    """
    start, cpu = time.perf_counter(), time.process_time()
    # Also lock the seed. If the parent process was killed, a second command may try to work on the same seed.
    held = lock(directory.seed_path(seed))
    make_repeatable(seed)
    with precision(settings["precision"]):
        training = draw(settings["examples"], settings["dimension"], seed, 0)
        model = build(settings)
        attach(model, settings, seed)
        watch = Watch(settings, seed, training, orphaned)
        data = tf.data.Dataset.from_tensor_slices(training).shuffle(
            settings["examples"], seed=seed
        )
        batches = data.batch(settings["batch_size"], drop_remainder=True)
        about = None
        try:
            model.fit(
                batches,
                epochs=-(
                    -settings["iterations"]
                    // (settings["examples"] // settings["batch_size"])
                ),
                callbacks=[watch],
                shuffle=False,  # The data set shuffles already.
                verbose=0,
            )
            if watch.diverged is None:
                directory.seed_path(seed).mkdir(exist_ok=True)
                srel_tf.write_frame(
                    watch.distances(), directory.seed_path(seed) / "distances.parquet"
                )
                seconds = {
                    "seconds": time.perf_counter() - start,
                    "cpu_seconds": time.process_time() - cpu,
                }
                about = {"seed": seed, **{n: round(s, 1) for n, s in seconds.items()}}
                about["parameters"] = model.count_params()
        finally:
            directory.save_seed(seed, model.srel_frame(), watch.risks(), about)
            held.release()
    if watch.diverged is not None:
        raise DivergedError(
            f"the training loss of seed {seed} became {watch.diverged} at optimizer update "
            f"{int(model.optimizer.iterations)}: lower --learning-rate; earlier measurements are saved"
        )
