"""A user's own measures and layer rules work like built-in ones."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import srel_tf
from srel_tf.measures import registry
from tests import reference
from tests.nets import double_precision

L = keras.layers


def hellinger(change):
    root_ratio = tf.math.expm1(change.log_ratio / 2)
    return tf.sqrt(tf.reduce_sum(change.before * root_ratio**2, axis=-1) / 2)


def hellinger_first_order(change):
    return tf.sqrt(
        tf.reduce_sum(change.before * (change.log_ratio / 2) ** 2, axis=-1) / 2
    )


def hellinger_of_numpy(before, after):
    p, q = (
        np.exp(reference.log_softmax(np.asarray(z, np.longdouble)))
        for z in (before, after)
    )
    return float(np.sqrt(((np.sqrt(q) - np.sqrt(p)) ** 2).sum() / 2))


def top_margin(change):
    """Return the change of the gap between the two outputs that were largest before the update."""
    order = tf.argsort(change.before, direction="DESCENDING")[..., :2]
    first, second = tf.unstack(
        tf.gather(change.difference, order, batch_dims=len(order.shape) - 1), axis=-1
    )
    return tf.abs(first - second)


def classifier(cls=keras.Model):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    model = cls(inputs, L.Dense(3)(L.Dense(6, activation="tanh")(inputs)))
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
Y = np.arange(6) % 3


def test_a_measure_of_ones_own_is_measured_and_is_in_the_frame():
    srel_tf.register_measure("hellinger", hellinger, probabilities=True)
    model = classifier(srel_tf.SRelModel)
    model.attach_probe(
        srel_tf.ProbeSet(X, Y), every=1, measures=("hellinger", "kl"), learning_rate=0.5
    )
    with double_precision():
        exact = classifier()
    exact.set_weights(model.get_weights())
    expected = reference.srel(exact, X, Y, range(6), range(6), 0.5, hellinger_of_numpy)
    model.fit(X, Y, batch_size=6, verbose=0)
    frame = model.srel_frame()
    first = frame[(frame["step"] == 0) & (frame["measure"] == "hellinger")]
    assert first["valid"].all()
    matrix = first.pivot(
        index="source_id", columns="target_id", values="srel"
    ).to_numpy()
    np.testing.assert_allclose(matrix, expected, rtol=1e-3)
    assert set(frame["measure"]) == {"hellinger", "kl"}


def test_its_limit_is_that_of_short_steps():
    srel_tf.register_measure(
        "hellinger", hellinger, first_order=hellinger_first_order, probabilities=True
    )
    model, probe = classifier(), srel_tf.ProbeSet(X, Y)
    limit = srel_tf.measure(model, probe, "hellinger", estimator="limit")
    step = srel_tf.measure(
        model, probe, "hellinger", learning_rate=1e-6, precision="float64"
    )
    assert limit.valid("hellinger").all()
    np.testing.assert_allclose(
        limit.matrix("hellinger"), step.matrix("hellinger"), rtol=1e-4
    )


def test_a_measure_without_a_first_order_form_has_no_limit():
    srel_tf.register_measure("margin", top_margin)
    model, probe = classifier(), srel_tf.ProbeSet(X, Y)
    with pytest.raises(
        srel_tf.OptionError, match=r"'margin'.*no first-order form.*register_measure"
    ):
        srel_tf.measure(model, probe, "margin", estimator="limit")
    assert srel_tf.measure(model, probe, "margin").valid("margin").any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "kl", "distance": hellinger}, "'kl'.*built in"),
        ({"name": 3, "distance": hellinger}, "3.*name as a string"),
        ({"name": "mine", "distance": "l1"}, "distance='l1'.*function of a Change"),
        ({"name": "mine", "distance": hellinger, "first_order": 1}, "first_order=1"),
        ({"name": "mine", "distance": hellinger, "degree": 3}, "degree=3"),
        ({"name": "mine", "distance": hellinger, "tolerance": 0}, "tolerance=0"),
    ],
)
def test_what_is_no_measure(arguments, message):
    with pytest.raises(srel_tf.OptionError, match=message):
        srel_tf.register_measure(**arguments)
    assert "mine" not in registry.MEASURES


@keras.saving.register_keras_serializable("tests")
class Scale(L.Layer):
    def build(self, input_shape):
        self.w = self.add_weight(shape=input_shape[-1:], initializer="random_normal")

    def call(self, x):
        return x * (1 + self.w)


def scaled():
    keras.utils.set_random_seed(2)
    inputs = keras.Input((4,))
    model = keras.Model(
        inputs, L.Dense(3)(Scale()(L.Dense(5, activation="tanh")(inputs)))
    )
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def test_a_rule_of_ones_own_gives_what_differentiation_gives():
    model, probe = scaled(), srel_tf.ProbeSet(X, Y)
    with pytest.warns(
        UserWarning,
        match=r"no gradient rule for layers of type Scale.*register_layer_rule",
    ):
        expected = srel_tf.measure(model, probe, estimator="limit").matrix("kl")
    calls = []

    @srel_tf.register_layer_rule(Scale)
    def scale(layer, call, x, output_grads):
        calls.append(layer)
        return [(layer.w, srel_tf.ExplicitGradient(x[:, None] * output_grads))]

    result = srel_tf.measure(model, probe, estimator="limit")
    assert calls
    np.testing.assert_allclose(result.matrix("kl"), expected, rtol=1e-9)


@pytest.mark.parametrize("by", ["exact", "limit", "kernel"])
def test_a_wrong_rule_is_refused(by):
    """Its gradient is compared with that of differentiation."""

    @srel_tf.register_layer_rule(Scale)
    def wrong(layer, call, x, output_grads):
        return [(layer.w, srel_tf.ExplicitGradient(10 * x[:, None] * output_grads))]

    model, probe = scaled(), srel_tf.ProbeSet(X, Y)
    measured = {
        "kernel": lambda: srel_tf.empirical_ntk(model, X),
        "exact": lambda: srel_tf.measure(model, probe),
        "limit": lambda: srel_tf.measure(model, probe, estimator="limit"),
    }
    with pytest.raises(
        srel_tf.ModelError, match=r"gradient of .*scale.* differs from differentiation"
    ):
        measured[by]()


def test_a_rule_is_for_layers():
    with pytest.raises(
        srel_tf.OptionError,
        match=r"register_layer_rule\(3\).*subclasses of keras.Layer",
    ):
        srel_tf.register_layer_rule(3)
