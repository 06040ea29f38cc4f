"""What a measurement costs: the exact matrix beside a forward pass and beside the published procedure, in one run.

    python -m train.benchmark                     the published ResNet-18, 60 sources x 60 targets, 32 x 32 images

All figures are medians of repetitions in one process; the ratios are what carries over to another machine.
"""

import argparse
import platform
import resource
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import srel_tf
from train.experiment import make_repeatable
from train.models import build_model
from train.runs import environment

CLASSES = 3


def parser():
    p = argparse.ArgumentParser(
        prog="python -m train.benchmark", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--model", default="resnet18")
    p.add_argument("--per-class", type=int, default=20, help="probe points of each of 3 classes")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--published", type=int, default=9, help="(source, class) pairs of the published procedure to time")
    return p


def main(arguments=None):
    args = parser().parse_args(arguments)
    make_repeatable(0)
    n = CLASSES * args.per_class
    x = np.random.default_rng(0).normal(size=(n, 32, 32, 3)).astype("float32")
    y = np.repeat(np.arange(CLASSES), args.per_class)
    model = build_model(args.model, x.shape[1:], CLASSES)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss, metrics=["accuracy"], jit_compile=False)
    forward = tf.function(lambda batch: model(batch, training=False), jit_compile=False)
    batch, probe = tf.constant(x), srel_tf.ProbeSet(x, y)
    _seconds(lambda: forward(batch))
    before = _peak_memory()
    instrument = srel_tf.Instrument(model, probe)
    instrument()  # Traces its graph, which later calls use, as those inside `fit` do.
    above = _peak_memory() - before

    forwards, matrices, published = [], [], []
    for _ in range(args.repeats):
        forwards += [_seconds(lambda: forward(batch)) for _ in range(10)]
        matrices.append(instrument().seconds)
    for source in range(args.published):
        published.append(_seconds(lambda i=source: published_pair(model, x, y, i % n, (i // n + i) % CLASSES)))
    one, matrix, pair = (float(np.median(s)) for s in (forwards, matrices, published))
    whole = pair * n * CLASSES
    weights = sum(v.numpy().nbytes for v in model.trainable_variables)

    about = environment()
    print(
        f"\n{_processor()}, {about['machine']}, {', '.join(about['devices'])}; TensorFlow {about['tensorflow']}, Keras"
    )
    print(
        f"{about['keras']}. {args.model}, {model.count_params():,} parameters, {n} sources x {n} targets, 32 x 32 x 3."
    )
    print(f"one forward pass of the {n} targets             {one:8.4f} s")
    print(
        f"exact matrix (kl and l1)                      {matrix:8.3f} s   {matrix / (n * one):.2f} x {n} forward passes"
    )
    print(f"published procedure, in Keras                 {whole:8.1f} s   {whole / matrix:.1f} x the exact matrix")
    print(
        f"  (median of {len(published)} of its {n * CLASSES} (source, class) pairs, {pair:.3f} s, times {n * CLASSES})"
    )
    print(f"memory above a forward pass, graph included   {above / 1e6:8.0f} MB  {above / weights:.1f} x the weights")


def published_pair(model, x, y, source, target_class):
    """One (source, class) pair as the published code does it: a new net, a new Adam, one step, two passes."""
    targets = tf.constant(x[y == target_class])
    xs, ys = tf.constant(x[[source]]), tf.constant(y[[source]])
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    optimizer = keras.optimizers.Adam(1e-4)
    before = [copy(batch, training=False) for batch in (targets, xs)]
    with tf.GradientTape() as tape:
        loss = model.loss(ys, copy(xs, training=False))
    optimizer.apply_gradients(zip(tape.gradient(loss, copy.trainable_variables), copy.trainable_variables, strict=True))
    after = [copy(batch, training=False) for batch in (targets, xs)]
    p, q = ([tf.nn.softmax(outputs) for outputs in side] for side in (before, after))
    numerator, denominator = (
        tf.reduce_mean(old * (tf.math.log(old) - new), axis=-1) for old, new in zip(p, q, strict=True)
    )
    return (numerator / (denominator + 1e-8)).numpy()


def _seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _peak_memory():
    """Largest resident size of this process so far, bytes (Linux counts kibibytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _processor():
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
