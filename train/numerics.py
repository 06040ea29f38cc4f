"""What float32 resolves: the estimators `exact` and `auto` beside float64, at every stage of training and any η.

    python -m train.numerics                 an MLP, a CNN and a residual net on scikit-learn's digits
    python -m train.numerics --out DIR       also DIR/numerics.csv (each net) and DIR/numerics.md (the table)

An entry that is called valid must be within 1e-3 · (1 + S) of float64 for ℓ1 and ℓ2, within 2e-3 · (1 + S) for KL.
Errors are given in that unit: above 1 an entry is outside the contract.
"""

import argparse
import contextlib
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import layers

import srel_tf
from train.data import load
from train.experiment import make_repeatable
from train.models import build_model
from train.numerics_table import TOLERANCE, as_markdown, comparison, progress, summary

ETAS = tuple(10.0**k for k in range(-8, 0))
STAGES = {"initialisation": np.inf, "mid-training": 0.3, "converged": 1e-4}  # Training loss, nats.
NEGLIGIBLE = 0.05  # A share of the tolerance.


class NotConverged(RuntimeError):
    """Training ended above the loss that a stage asks for."""


def parser():
    p = argparse.ArgumentParser(prog="python -m train.numerics", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS), help="each with logits and a softmax")
    p.add_argument("--per-class", type=int, default=3, help="probe points of each of 10 digits")
    p.add_argument("--max-epochs", type=int, default=2000, help="by which training must have converged")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, help="directory for the tables")
    return p


def main(arguments=None):
    """Run the command; the exit status: 1 where a valid entry is outside the contract."""
    args = parser().parse_args(arguments)
    make_repeatable(args.seed)
    data = load("digits").train
    probe = srel_tf.ProbeSet.sample(data.x, data.y, per_class=args.per_class, seed=args.seed)
    parts = []
    for name in args.nets:
        parts.append(of_net(name, data, probe, args))
        print(f"{name}: {progress(parts[-1])}", file=sys.stderr, flush=True)
    rows = pd.concat(parts, ignore_index=True)
    table = summary(rows)
    text = as_markdown(table)
    print(text)
    outside = int(rows["exact_outside"].sum() + rows["auto_outside"].sum())
    print(f"\n{outside} valid entries outside the contract, of {rows['exact_valid'].sum() + rows['auto_valid'].sum()}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        rows.to_csv(args.out / "numerics.csv", index=False)
        (args.out / "numerics.md").write_text(text + "\n", encoding="utf-8")
        print(f"tables: {args.out / 'numerics.csv'}, {args.out / 'numerics.md'}")
    return 1 if outside else 0


def residual(input_shape, num_classes):
    """Two residual blocks without normalisation."""
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(16, 3, padding="same")(inputs)
    for _ in range(2):
        inner = layers.Conv2D(16, 3, padding="same", activation="relu")(x)
        x = layers.ReLU()(layers.Add()([x, layers.Conv2D(16, 3, padding="same")(inner)]))
    return keras.Model(inputs, layers.Dense(num_classes)(layers.GlobalAveragePooling2D()(x)))


NETS = {
    "mlp": lambda shape, classes: build_model("mlp", shape, classes),
    "cnn": lambda shape, classes: build_model("cnn", shape, classes),
    "residual": residual,
}


def compiled(name, end, probe, optimizer):
    """The net in Keras's present precision, with its loss in that precision too."""
    net = NETS[name](probe.x.shape[1:], 10)
    if end == "softmax":
        net = keras.Model(net.inputs, layers.Softmax()(net.outputs[0]))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=end == "logits", dtype=keras.config.floatx())
    net.compile(optimizer, loss, jit_compile=False)
    return net


def of_net(name, data, probe, args):
    """One row a (stage, end, η, measure) of one net, as a data frame.

    It is trained with logits; the net that ends in a softmax is the same function of the same weights.
    """
    keras.utils.set_random_seed(args.seed)
    trained = compiled(name, "logits", probe, keras.optimizers.Adam(3e-3))
    ends = {end: Ends(name, end, probe) for end in ("logits", "softmax")}
    rows = []
    for stage, below in STAGES.items():
        loss = train_until(trained, data, below, args.max_epochs)
        for end, nets in ends.items():
            about = {"net": name, "end": end, "stage": stage, "loss": loss}
            rows += [{**about, **row} for row in nets.rows(trained.get_weights())]
    return pd.DataFrame(rows)


class Ends:
    """A net with one of its ends, in float32 and in float64, ready to be measured at any weights."""

    def __init__(self, name, end, probe):
        self._net = compiled(name, end, probe, "sgd")
        self._singles = {estimator: instrument(self._net, probe, estimator) for estimator in ("exact", "auto")}
        with double_precision():
            self._twin = compiled(name, end, probe, "sgd")
            self._doubles = {estimator: instrument(self._twin, probe, estimator) for estimator in ("exact", "limit")}

    def rows(self, weights):
        """One row a (η, measure)."""
        self._net.set_weights(weights)
        self._twin.set_weights(weights)
        with double_precision():
            reference = Reference(self._twin, self._doubles)
        for eta in ETAS:
            measured = {estimator: at(self._net, eta, one) for estimator, one in self._singles.items()}
            for measure in TOLERANCE:
                yield {"eta": eta, "measure": measure, **comparison(measured, measure, *reference.of(eta, measure))}


def instrument(net, probe, estimator):
    return srel_tf.Instrument(net, probe, srel_tf.Settings(measures=tuple(TOLERANCE), estimator=estimator))


def at(net, eta, instrument):
    """A measurement with η."""
    net.optimizer.learning_rate = eta
    return instrument()


def train_until(net, data, below, max_epochs):
    """Train until the loss of the whole training set is below a value; that loss."""

    def loss():
        return net.evaluate(data.x, data.y, batch_size=512, verbose=0)

    if (now := loss()) < below:
        return now
    for _ in range(max_epochs):
        running = net.fit(data.x, data.y, batch_size=128, verbose=0).history["loss"][-1]
        if running < 2 * below and (now := loss()) < below:  # Evaluated where it may be so.
            return now
    raise NotConverged(f"{net.name}: training loss {loss():.2e} after {max_epochs} epochs, above {below:g}")


class Reference:
    """S_rel of the float64 net for every η of `ETAS`.

    `exact` where float64 resolves it by its own bound. Below that, at the smallest η of a converged net (a change of
    1e-16 of the outputs), S differs from its limit by a share that is proportional to η: the gap between the two at
    the next η' that float64 resolves, times η/η', is what the limit is wrong by. Where that is below `NEGLIGIBLE`
    tolerances the limit is the reference; elsewhere there is none, and the entry is counted apart.
    """

    def __init__(self, twin, instruments):
        self._limit = instruments["limit"]()
        self._exact = {eta: at(twin, eta, instruments["exact"]) for eta in ETAS}

    def of(self, eta, measure):
        """(S_rel, whether there is a reference), [n_s, n_t] each."""
        limit, exact = self._limit.matrix(measure), self._exact[eta].matrix(measure)
        gap = np.full(limit.shape, np.inf)
        for other in sorted((e for e in ETAS if e > eta), reverse=True):
            there = self._exact[other]
            apart = np.abs(there.matrix(measure) - limit) * eta / other
            gap = np.where(there.valid(measure), apart, gap)
        close = gap <= NEGLIGIBLE * TOLERANCE[measure] * (1 + limit)  # False where the limit is NaN.
        s = np.where(self._exact[eta].valid(measure), exact, np.where(close, limit, np.nan))
        return s, np.isfinite(s)


@contextlib.contextmanager
def double_precision():
    """Layers, losses and penalties in float64."""
    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


if __name__ == "__main__":
    sys.exit(main())
