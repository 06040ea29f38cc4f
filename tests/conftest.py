"""Settings of all tests.

Warnings of our own code are errors unless a test expects them. Random seeds are fixed, and figures need no display.
"""

import gc
import os

os.environ["MPLBACKEND"] = "agg"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest
import tensorflow as tf
from tensorflow.python.framework.config import (
    disable_op_determinism,
)  # TensorFlow has no public name for it.

from srel_tf import updates
from srel_tf.gradients import layer_rules
from srel_tf.measures.registry import MEASURES
from tests.nets import double_precision

# The longest modules. They begin first, so that no worker is left alone with one of them at the end.
LONGEST = (
    "test_estimators",
    "test_contract",
    "test_resume",
    "test_memory",
    "test_docs",
    "test_replication",
    "test_classification",
    "test_regression",
    "test_numerics",
    "test_limit",
    "test_exact",
)


def pytest_collection_modifyitems(items):
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


def pytest_configure(config):
    # Imported objects are never freed. To search them for garbage would take a tenth of the time of tracing graphs.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    # `tests` is included, because srel_tf attributes its warnings to the caller, which is a test.
    config.addinivalue_line("filterwarnings", r"error:::(srel_tf|train|tests)(\.|$)")


@pytest.fixture(autouse=True, scope="module")
def _without_graphs_of_other_modules():
    """Drop the graphs of a test module, because each live graph makes the next dataset iterator of `fit` slower.

    TensorFlow never frees some graphs. They are frozen, so that the garbage collector skips them from then on.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fixed_seeds():
    """Give each test the same seeds, registries and TensorFlow operations, whatever the tests before it have set."""
    keras.utils.set_random_seed(0)
    before = [
        (registry, dict(registry))
        for registry in (MEASURES, layer_rules.RULES, updates.RULES)
    ]
    yield
    disable_op_determinism()
    for registry, entries in before:
        registry.clear()
        registry.update(entries)
    assert tf.compat.v1.get_variable_scope().caching_device is None


@pytest.fixture
def in_double_precision():
    """Compute layers, losses and penalties in float64."""
    with double_precision():
        yield


@pytest.fixture
def deterministic_operations():
    """Use TensorFlow's deterministic operations. The gradients of some differ from those of the usual operations."""
    tf.config.experimental.enable_op_determinism()
