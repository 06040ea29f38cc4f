"""Steps and epochs of made-up trainings that end anywhere and go back to any state, against a plain count of both."""

import random
from types import SimpleNamespace

import pytest

from srel_tf.fit.clock import TrainingClock


class Training:
    """What Keras's `fit` does to an optimizer's counts, with the counts of what the weights have had beside them."""

    def __init__(self, rng, length, accumulated, is_length_known):
        self._rng, self._length, self._known = rng, length, is_length_known
        self._accumulated = accumulated
        self.optimizer = self._new_optimizer()
        self.updates = self.batches = self.reached = (
            0  # The step was reached after this many batches.
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
        """To a state of the same optimizer, none of which are later than the present one."""
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
        self.reached = None  # Batches that the former optimizer has collected are lost.

    def check(self):
        assert self.clock.step == self.updates
        if self._known and self.reached is not None:
            epochs, batches, length = self.clock.reached
            assert epochs + (batches / length if batches else 0) == pytest.approx(
                self.reached / self._length
            )

    def maybe(self, share, act):
        if self._rng.random() < share:
            act()

    def fit(self, epochs):
        """Some epochs, or fewer: an error may come at any batch, before or after the callback sees its end."""
        self.clock.begin_fit(self.optimizer)
        for epoch in range(epochs):
            self.maybe(0.1, self.go_back)
            self.clock.observe(self.optimizer)
            self.clock.begin_epoch(epoch, self._length if self._known else None)
            for _ in range(self._length):
                self.maybe(0.02, self.go_back)
                self.clock.observe(self.optimizer)
                self.check()
                self.clock.begin_batch()
                self._count()
                if self._rng.random() < 0.03:
                    return
                self.maybe(0.05, self.save)
                self.maybe(0.02, self.compile)
                self.clock.observe(self.optimizer, batches=1)
                self.check()
                if self._rng.random() < 0.03:
                    return
            if not self._known:
                self.clock.observe(self.optimizer)
                self.clock.begin_batch()
                self._count(with_data=False)
            length = self.clock.end_epoch()
            assert length == (None if self._known else self._length)
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


def test_a_copy_goes_its_own_way():
    optimizer = SimpleNamespace(iterations=4)
    clock = TrainingClock()
    clock.begin_fit(optimizer)
    clock.begin_epoch(0, 8)
    other = clock.copy()
    optimizer.iterations = 5
    other.observe(optimizer, batches=1)
    assert (clock.step, other.step) == (4, 5)
    assert (clock.reached.batches, other.reached.batches) == (0, 1)
