"""One seed of a classification experiment: data, net, probe, `fit`, and what came out."""

import time

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

import srel_tf
from srel_tf import SRelError
from train import data
from train.models import build_model
from train.optimizers import make_optimizer


class DivergedError(SRelError, ArithmeticError):
    """The training loss became NaN or infinite."""


def make_repeatable(seed):
    """Seed Python, NumPy and TensorFlow, and let TensorFlow use deterministic kernels only."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def load_data(settings, seed):
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


def batches(split, batch_size, seed):
    """Shuffled batches, in another order each epoch; the last, incomplete one is dropped, as in the published code."""
    x, y = tf.constant(split.x), tf.constant(split.y)
    order = tf.data.Dataset.range(len(split.y)).shuffle(len(split.y), seed=seed, reshuffle_each_iteration=True)
    indices = order.batch(batch_size, drop_remainder=True)
    return indices.map(lambda i: (tf.gather(x, i), tf.gather(y, i))).prefetch(2)


def compiled_model(settings, images):
    """The net, compiled with cross-entropy on logits."""
    model = build_model(settings["model"], images.input_shape, images.num_classes)
    model.compile(
        optimizer=make_optimizer(settings["optimizer"], settings["learning_rate"], settings["weight_decay"]),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    return model


def train(settings, seed, directory, log_dir=None, verbose=1):
    """Train and measure one seed into a `RunDirectory`, which is up to date after each epoch and after an interruption.

    Raises `DivergedError` when the loss is no longer a number; what was measured before is saved.
    """
    start = time.perf_counter()
    make_repeatable(seed)
    images = load_data(settings, seed)
    directory.check_data(images.fingerprint)
    _check_batch_size(settings["batch_size"], images)
    model = compiled_model(settings, images)
    probe = srel_tf.ProbeSet.sample(
        images.train.x, images.train.y, per_class=settings["per_class"], seed=seed, class_names=images.class_names
    )
    for update in settings["update"]:
        model.attach_probe(
            probe,
            every=settings["every"],
            measures=settings["measures"],
            update=update,
            learning_rate=settings["srel_learning_rate"],
            estimator=settings["estimator"],
            run=f"seed-{seed}",
            seed=seed,
            log_dir=log_dir,
        )
    rows = _History(seed)

    def save(*_, about=None):
        directory.save_seed(seed, model.srel_frame(), rows.frame(), about)

    try:
        model.fit(
            batches(images.train, settings["batch_size"], seed),
            epochs=settings["epochs"],
            validation_data=(images.test.x, images.test.y),
            validation_batch_size=256,
            callbacks=[rows, keras.callbacks.LambdaCallback(on_epoch_end=save), keras.callbacks.TerminateOnNaN()],
            shuffle=False,  # `batches` has done it.
            verbose=verbose,
        )
    finally:
        save()
    if rows.diverged:
        raise DivergedError(
            f"the training loss of seed {seed} became {rows.diverged} at optimizer update "
            f"{int(model.optimizer.iterations)}: lower --learning-rate; what was measured before is saved"
        )
    about = {
        "seed": seed,
        "seconds": round(time.perf_counter() - start, 1),
        "updates": int(model.optimizer.iterations),
        "parameters": model.count_params(),
        "data_fingerprint": images.fingerprint,
        "probe_ids": images.train.ids[probe.ids].tolist(),
    }
    save(about=about)


class _History(keras.callbacks.Callback):
    """Loss and accuracy by epoch, tidy; and the loss that was not a number, if there was one."""

    def __init__(self, seed):
        super().__init__()
        self._seed, self._rows, self.diverged = seed, [], None

    def on_train_batch_end(self, batch, logs=None):
        if not np.isfinite(logs["loss"]):
            self.diverged = float(logs["loss"])

    def on_epoch_end(self, epoch, logs=None):
        for split, prefix in (("train", ""), ("test", "val_")):
            values = {name: logs[prefix + name] for name in ("loss", "accuracy")}
            run = {"run": f"seed-{self._seed}", "seed": self._seed, "epoch": epoch + 1, "split": split}
            self._rows.append({**run, **values})

    def frame(self):
        return pd.DataFrame(self._rows, columns=["run", "seed", "epoch", "split", "loss", "accuracy"])


def _check_batch_size(batch_size, images):
    if not 1 <= batch_size <= len(images.train.y):
        raise srel_tf.OptionError(
            f"batch size {batch_size}: there are {len(images.train.y)} training images, give 1 to that many"
        )


def select_top(settings, count, seed, verbose=1):
    """Train on all classes of `settings` without a probe; the `count` classes of highest class-wise test accuracy.

    Returns (class names in the order of their labels, {class: accuracy}).
    """
    make_repeatable(seed)
    images = load_data(settings, seed)
    if not 2 <= count <= images.num_classes:
        raise srel_tf.OptionError(f"--select-top {count}: {settings['dataset']} has {images.num_classes} classes")
    _check_batch_size(settings["batch_size"], images)
    model = compiled_model(settings, images)
    model.fit(
        batches(images.train, settings["batch_size"], seed),
        epochs=settings["epochs"],
        shuffle=False,
        callbacks=[keras.callbacks.TerminateOnNaN()],
        verbose=verbose,
    )
    predicted = model.predict(images.test.x, batch_size=256, verbose=0).argmax(axis=-1)
    accuracy = [float((predicted[images.test.y == k] == k).mean()) for k in range(images.num_classes)]
    best = sorted(sorted(range(images.num_classes), key=lambda k: -accuracy[k])[:count])  # Ties: the lower label.
    return [images.class_names[k] for k in best], dict(zip(images.class_names, accuracy, strict=True))
