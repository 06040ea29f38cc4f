"""A cheap substitute for the instrument, for tests of the steps at which a probe is measured."""

import hashlib

import pytest

from srel_tf import Instrument
from srel_tf.fit import callback
from srel_tf.updates import learning_rate_now
from tests.made_up import result


class Thermometer:
    """Instrument without a graph. Its entries are random numbers with a seed that is computed from the weights."""

    def __init__(self, model, probe, settings):
        self.settings, self._model, self._probe = settings, model, probe

    def __call__(self):
        weights = b"".join(v.numpy().tobytes() for v in self._model.weights)
        return result(
            self._probe,
            measures=self.settings.measures,
            update=self.settings.update,
            learning_rate=learning_rate_now(self._model, self.settings.learning_rate),
            seed=int.from_bytes(hashlib.sha256(weights).digest()[:4], "big"),
            estimator=self.settings.estimator,
        )


@pytest.fixture
def thermometer(monkeypatch):
    monkeypatch.setattr(callback, "Instrument", Thermometer)


@pytest.fixture
def real_instrument(thermometer, monkeypatch):
    """Restore the real instrument in a module whose other tests use the thermometer."""
    monkeypatch.setattr(callback, "Instrument", Instrument)
