"""Steps and epochs of the clock, compared with plain counts in simulated trainings that stop and go back at random."""

import random
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from srel_tf.fit.clock import ClockedCallback, Position, TrainingClock, clock_of


class Training:
    """Simulates what `fit` does to an optimizer's counts, and counts the updates and batches applied to the weights."""

    def __init__(self, rng, length, accumulated, is_length_known):
        self._rng, self._length, self._known = rng, length, is_length_known
        self._accumulated = accumulated
        self.optimizer = self._new_optimizer()
        self.updates = self.batches = self.reached = (
            0  # `reached`: number of batches after which the current step was reached.
        )
        self.clock = TrainingClock()
        self.states = []

    def _new_optimizer(self):
        return SimpleNamespace(
            _iterations=0, iterations=0, gradient_accumulation_steps=self._accumulated
        )

    def _count(self, with_data=True):
        before = self.optimizer.iterations
        self.optimizer._iterations += 1
        self.optimizer.iterations = self.optimizer._iterations // (
            self._accumulated or 1
        )
        if with_data:
            self.batches += 1
            if self.optimizer.iterations > before:
                self.updates, self.reached = self.updates + 1, self.batches

    def save(self):
        self.states.append(
            (self.optimizer._iterations, self.updates, self.batches, self.reached)
        )

    def go_back(self):
        """Go back to a saved state of the same optimizer. No saved state is later than the current one."""
        if self.states:
            chosen = self._rng.randrange(len(self.states))
            self.optimizer._iterations, self.updates, self.batches, self.reached = (
                self.states[chosen]
            )
            self.optimizer.iterations = self.optimizer._iterations // (
                self._accumulated or 1
            )
            self.states = self.states[: chosen + 1]

    def compile(self):
        self.optimizer, self.states = self._new_optimizer(), []
        self.reached = (
            None  # Gradients that the former optimizer has accumulated are lost.
        )

    def check(self):
        assert self.clock.step == self.updates
        if self._known and self.reached is not None:
            assert self.clock.reached.epochs == pytest.approx(
                self.reached / self._length
            )

    def maybe(self, share, act):
        if self._rng.random() < share:
            act()

    def fit(self, epochs):
        """Train `epochs` epochs. An error may end the fit at any batch, before or after the callback sees its end."""
        self.clock.begin_fit(self.optimizer)
        for epoch in range(epochs):
            self.maybe(0.1, self.go_back)
            length = self._length if self._known else None
            self.clock.begin_epoch(self.optimizer, epoch, length)
            for batch in range(self._length):
                assert self.clock.position == (epoch, batch)
                self.maybe(0.02, self.go_back)
                self.clock.begin_batch(self.optimizer)
                self.check()
                self._count()
                if self._rng.random() < 0.03:
                    return
                self.maybe(0.05, self.save)
                self.maybe(0.02, self.compile)
                self.clock.end_batch(self.optimizer, batch)
                self.check()
                if self._rng.random() < 0.03:
                    return
            if not self._known:
                self.clock.begin_batch(self.optimizer)
                self._count(with_data=False)
            place = self.clock.reached
            self.clock.end_epoch(self.optimizer)
            assert self.clock.position == (epoch + 1, 0)
            assert self._known or place.epoch.length in (self._length, None)
            self.maybe(0.3, self.save)
            self.maybe(0.1, self.go_back)
            self.clock.observe(self.optimizer)
            self.check()


@pytest.mark.parametrize("is_length_known", [True, False])
@pytest.mark.parametrize("accumulated", [None, 3])
def test_steps_and_epochs_are_those_of_a_plain_count(accumulated, is_length_known):
    for seed in range(300):
        rng = random.Random(seed)
        training = Training(rng, rng.randint(1, 6), accumulated, is_length_known)
        for _ in range(4):
            training.fit(rng.randint(1, 4))
            training.maybe(0.4, rng.choice([training.go_back, training.compile]))


def test_which_batch_makes_the_next_update():
    optimizer = SimpleNamespace(
        _iterations=0, iterations=0, gradient_accumulation_steps=3
    )
    clock = TrainingClock()
    updates = []
    for count in range(7):
        optimizer._iterations, optimizer.iterations = count, count // 3
        clock.observe(optimizer)
        updates.append(clock.updates_next)
    assert updates == [False, False, True, False, False, True, False]


def test_the_places_of_an_epoch_of_unknown_length_learn_it():
    optimizer = SimpleNamespace(iterations=0)
    clock = TrainingClock()
    clock.begin_fit(optimizer)
    clock.begin_epoch(optimizer, 0, None)
    places = []
    for batch in range(4):
        clock.begin_batch(optimizer)
        optimizer.iterations += 1
        clock.end_batch(optimizer, batch)
        places.append(clock.reached)
    assert np.isnan([place.epochs for place in places]).all()
    clock.begin_batch(optimizer)  # Keras finds no data for this batch.
    clock.end_epoch(optimizer)
    assert [place.epochs for place in places] == [0.25, 0.5, 0.75, 1.0]


def test_several_batches_in_an_execution():
    """Keras passes only the number of the last batch of each execution. Here executions have 3, 3 and 2 batches."""
    optimizer = SimpleNamespace(iterations=0)
    clock = TrainingClock()
    clock.begin_fit(optimizer)
    clock.begin_epoch(optimizer, 2, 8)
    for batch in (2, 5, 7):
        clock.begin_batch(optimizer)
        optimizer.iterations = batch + 1
        clock.end_batch(optimizer, batch)
        assert clock.position == (2, batch + 1)
        assert clock.reached.epochs == 2 + (batch + 1) / 8
    assert clock.batches_left == 0


def test_the_rest_of_an_epoch():
    """An earlier process has trained 2 of 5 batches of epoch 1. Any other epoch begins at its first batch."""
    optimizer = SimpleNamespace(iterations=7)
    for epoch, first, left in ((1, 2, 3), (0, 0, 3)):
        clock = TrainingClock()
        clock.resume(optimizer, 0, Position(1, 2))
        clock.begin_fit(optimizer)
        clock.begin_epoch(optimizer, epoch, 3)
        assert clock.position == (epoch, first)
        assert clock.batches_left == left


def test_one_callback_of_a_fit_moves_the_clock():
    """The first callback in the list moves the clock, even if the former fit ended with an error."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    first, second, third = (ClockedCallback() for _ in range(3))
    x = np.ones((4, 1), "float32")

    def stop(batch, logs):
        raise KeyboardInterrupt

    error = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, x, 1, callbacks=[first, second, error], verbose=0)
    assert clock_of(model).step == 1
    for callbacks in ([second, first], [first, third], [third]):
        before = clock_of(model).step
        model.fit(x, x, 1, callbacks=callbacks, verbose=0)
        assert [c for c in callbacks if c._moves_clock] == callbacks[:1]
        assert clock_of(model).step == before + 4
        assert clock_of(model).position == (1, 0)
