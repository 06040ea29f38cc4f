"""One seed of a classification experiment: data, net, probe, `fit`, and results."""

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import srel_tf
from srel_tf import SRelError
from srel_tf.files import write_json
from train.classification.rules import parse_rules
from train.common import data
from train.common.callbacks import Clock, History, Lines, StopWhen
from train.common.data import ImageData, Split
from train.common.optimizers import make_optimizer
from train.common.run_directory import RunDirectory
from train.models import build_model


class DivergedError(SRelError, ArithmeticError):
    """The training loss became NaN or infinite."""


def _within_epochs(every: int, steps_per_epoch: int) -> Callable[[int], bool]:
    """Make the published schedule: measure after updates 1, 1 + every, 1 + 2·every, … of each epoch, counted from 1."""
    if every < 1:
        raise srel_tf.OptionError(f"--every {every}: give at least 1")
    return lambda step: step > 0 and (step - 1) % steps_per_epoch % every == 0


SCHEDULES = {"updates": lambda every, steps_per_epoch: every, "epoch": _within_epochs}


def make_repeatable(seed: int) -> None:
    """Seed Python, NumPy and TensorFlow, and let TensorFlow use deterministic kernels only."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def load_data(settings: Mapping[str, Any], seed: int) -> ImageData:
    return data.load(
        settings["dataset"],
        data_dir=settings["data_dir"],
        classes=settings["classes"],
        augment=settings["augment"],
        test_images=settings["test_images"],
        seed=seed,
        image_size=settings["image_size"],
        download=settings["download"],
    )


def order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Draw the order of `count` examples in an epoch.

    The order depends only on seed and epoch, so that a resumed run repeats it.
    """
    return np.random.default_rng([seed, epoch]).permutation(count)


def batches(
    split: Split, batch_size: int, seed: int, epoch: int = 0, skip: int = 0
) -> tf.data.Dataset:
    """Make an endless stream of batches, reshuffled in each epoch.

    The stream begins in `epoch` after the first `skip` batches. The last batch of an epoch is dropped if it is
    incomplete, as in the published code.
    """
    x, y = tf.constant(split.x), tf.constant(split.y)
    steps = len(split.y) // batch_size

    def indices() -> Iterator[np.ndarray]:
        for e in itertools.count(epoch):
            rows = order(len(split.y), seed, e)[: steps * batch_size].reshape(
                steps, batch_size
            )
            yield from rows[skip if e == epoch else 0 :]

    numbers = tf.data.Dataset.from_generator(
        indices, output_signature=tf.TensorSpec([batch_size], tf.int64)
    )
    return numbers.map(lambda i: (tf.gather(x, i), tf.gather(y, i))).prefetch(2)


def compiled_model(settings: Mapping[str, Any], images: ImageData) -> srel_tf.SRelModel:
    """Build the net and compile it with cross-entropy on logits."""
    model = build_model(settings["model"], images.input_shape, images.num_classes)
    model.compile(
        optimizer=make_optimizer(
            settings["optimizer"], settings["learning_rate"], settings["weight_decay"]
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    return model


def train(
    settings: Mapping[str, Any],
    seed: int,
    directory: RunDirectory,
    log_dir: Path | None = None,
    verbose: int | str = 1,
    resume: bool = False,
    restart: bool = False,
    skip_damaged: bool = False,
    checkpoint_every: int | None = None,
    orphaned: Callable[[], bool] | None = None,
) -> None:
    """Train and measure one seed, and write the results to a `RunDirectory`.

    Args:
        settings: Options of the command that affect the results.
        seed: Seed of data, weights, order and probe.
        directory: Run directory for rows and training state.
        log_dir: TensorBoard directory, or None.
        verbose: As for `fit`, or "lines" for one line per epoch.
        resume: Continue from the saved state. The results are bitwise equal to those of a run without interruption.
        restart: Discard the saved state and start again.
        skip_damaged: Leave out damaged parts of the saved frame.
        checkpoint_every: Number of optimizer updates between two saves; None means one epoch.
        orphaned: Function that is called after each update. If it returns True, the training saves and stops.

    Raises:
        DivergedError: If the loss is no longer finite. The measurements so far are saved.
        KeyboardInterrupt: After Ctrl-C, at the end of a step. The measurements so far are saved.
    """
    clock = Clock()
    make_repeatable(seed)
    images = load_data(settings, seed)
    directory.check_data(images.fingerprint)
    _check_batch_size(settings["batch_size"], images)
    model = compiled_model(settings, images)
    probe = _attach_probes(model, images, settings, seed, log_dir)
    about = {
        "data_fingerprint": images.fingerprint,
        "probe_ids": images.train.ids[probe.ids].tolist(),
    }
    rows = History(seed)
    note = directory.note(about)
    with directory.store(
        seed, note, resume=resume, restart=restart, skip_damaged=skip_damaged
    ) as store:
        checkpoint = srel_tf.Checkpoint(
            store, checkpoint_every, companions=[rows, clock], note=note
        )
        position = checkpoint.restore(model)
        if resume:
            print(
                f"seed {seed}: continues after {position.epoch} epochs and {position.batch} batches",
                flush=True,
            )
        try:
            with checkpoint.stop_after_step():
                lines = [Lines(seed, settings["epochs"])] if verbose == "lines" else []
                callbacks = [rows, *lines, StopWhen(orphaned, checkpoint), checkpoint]
                if not rows.diverged:
                    _fit(
                        model,
                        images,
                        settings,
                        seed,
                        position,
                        callbacks,
                        0 if lines else verbose,
                    )
            _check_loss(rows, model, seed)
        except BaseException:
            # If saving fails, too, for example on a full disk, only the first error is reported.
            with contextlib.suppress(SRelError):
                directory.save_rows(
                    seed, store, rows.frame(), checkpoint.unsaved(model)
                )
            raise
        done = {
            "seed": seed,
            "seconds": clock.state,
            "updates": int(model.optimizer.iterations),
            "parameters": model.count_params(),
            "weights_sha256": _digest(model),
            **about,
        }
        directory.finish_seed(seed, store, rows.frame(), done)


def _attach_probes(
    model: srel_tf.SRelModel,
    images: ImageData,
    settings: Mapping[str, Any],
    seed: int,
    log_dir: Path | None,
) -> srel_tf.ProbeSet:
    probe = srel_tf.ProbeSet.sample(
        images.train.x,
        images.train.y,
        per_class=settings["per_class"],
        seed=seed,
        class_names=images.class_names,
    )
    every = SCHEDULES[settings["schedule"]](
        settings["every"], len(images.train.y) // settings["batch_size"]
    )
    of_rules = (
        "update",
        "measures",
        "learning_rate",
        "srel_learning_rate",
        "estimator",
    )
    for rule in parse_rules(*(settings[name] for name in of_rules)):
        model.attach_probe(
            probe,
            every=every,
            **rule._asdict(),
            run=f"seed-{seed}",
            seed=seed,
            log_dir=log_dir,
        )
    return probe


def _fit(
    model: keras.Model,
    images: ImageData,
    settings: Mapping[str, Any],
    seed: int,
    position: tuple[int, int],
    callbacks: Sequence[keras.callbacks.Callback],
    verbose: int | str,
) -> None:
    """Train from `position` on: first the rest of an interrupted epoch, then the remaining epochs."""
    epoch, batch = position
    steps = len(images.train.y) // settings["batch_size"]
    for skip, end in (
        ((batch, epoch + 1), (0, settings["epochs"]))
        if batch
        else ((0, settings["epochs"]),)
    ):
        if epoch < end and not model.stop_training:
            model.fit(
                batches(images.train, settings["batch_size"], seed, epoch, skip),
                initial_epoch=epoch,
                epochs=end,
                steps_per_epoch=steps - skip,
                validation_data=(images.test.x, images.test.y),
                validation_batch_size=256,
                callbacks=[*callbacks, keras.callbacks.TerminateOnNaN()],
                shuffle=False,  # `batches` shuffles already.
                verbose=verbose,
            )
        epoch = end


def _digest(model: keras.Model) -> str:
    """Compute the hex SHA-256 of weights and optimizer variables. Equal runs have equal hashes."""
    digest = hashlib.sha256()
    for v in [*model.weights, *model.optimizer.variables]:
        digest.update(keras.ops.convert_to_numpy(v).tobytes())
    return digest.hexdigest()


def _check_loss(rows: History, model: keras.Model, seed: int) -> None:
    if rows.diverged:
        raise DivergedError(
            f"the training loss of seed {seed} became {rows.diverged} at optimizer update "
            f"{int(model.optimizer.iterations)}: lower --learning-rate; earlier measurements are saved"
        )


def _check_batch_size(batch_size: int, images: ImageData) -> None:
    if not 1 <= batch_size <= len(images.train.y):
        raise srel_tf.OptionError(
            f"batch size {batch_size}: give 1 to {len(images.train.y)}, the number of training images"
        )


def select_top(
    settings: Mapping[str, Any],
    count: int,
    seed: int,
    directory: RunDirectory,
    resume: bool = False,
    restart: bool = False,
    checkpoint_every: int | None = None,
) -> None:
    """Train on all classes of `settings` without a probe and select the `count` classes with the highest test accuracy.

    selection.json lists the names of these classes in the order of their labels, and {class: accuracy} of all classes.
    The training state is saved in `directory`/selection.parts until the selection is written. Raises the same errors
    as `train`.
    """
    make_repeatable(seed)
    images = load_data(settings, seed)
    if not 2 <= count <= images.num_classes:
        raise srel_tf.OptionError(
            f"--select-top {count}: {settings['dataset']} has {images.num_classes} classes; "
            f"give 2 to {images.num_classes}"
        )
    _check_batch_size(settings["batch_size"], images)
    model, rows = compiled_model(settings, images), History(seed)
    note = directory.note(
        {"data_fingerprint": images.fingerprint, "seed of the selection": seed}
    )
    parts = directory.path / "selection.parts"
    with directory.open_store(
        parts, "the selection of classes", note, resume=resume, restart=restart
    ) as store:
        checkpoint = srel_tf.Checkpoint(
            store, checkpoint_every, companions=[rows], note=note
        )
        position = checkpoint.restore(
            model, example=(images.test.x[:1], images.test.y[:1])
        )
        with checkpoint.stop_after_step():
            if not rows.diverged:
                _fit(model, images, settings, seed, position, [rows, checkpoint], 1)
        _check_loss(rows, model, seed)
        predicted = model.predict(images.test.x, batch_size=256, verbose=0).argmax(
            axis=-1
        )
        accuracy = [
            float((predicted[images.test.y == k] == k).mean())
            for k in range(images.num_classes)
        ]
        best = sorted(
            sorted(range(images.num_classes), key=lambda k: -accuracy[k])[:count]
        )  # Of classes with equal accuracy, prefer the lower label.
        of_class = dict(zip(images.class_names, accuracy, strict=True))
        chosen = {
            "seed": seed,
            "classes": [images.class_names[k] for k in best],
            "test_accuracy": of_class,
        }
        write_json(directory.path / "selection.json", chosen)
        store.delete()
