"""Our own warnings are errors unless a test expects them; global random state is fixed; figures need no display."""

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
from tests.nets import double_precision, graph_optimizer


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
    # What is imported stays: looking for garbage among it takes a tenth of the time of tracing graphs.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    # Also those that srel_tf attributes to its caller, which is a test.
    config.addinivalue_line("filterwarnings", r"error:::(srel_tf|train|tests)(\.|$)")


@pytest.fixture(autouse=True, scope="module")
def _without_graphs_of_other_modules():
    """Drop the graphs of a module: each one that is alive makes the next dataset iterator of `fit` slower.

    TensorFlow keeps some graphs for good. They are frozen, so that no later collection looks for garbage among them.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _quick_traces():
    with graph_optimizer(on=False):
        yield


@pytest.fixture(autouse=True)
def _fixed_seeds():
    """The same seeds and registries for each test, and TensorFlow's usual operations, whatever a test sets."""
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
    """Layers, losses and penalties in float64."""
    with double_precision():
        yield


@pytest.fixture
def deterministic_operations():
    """TensorFlow's deterministic operations. Some have another gradient than the usual ones."""
    tf.config.experimental.enable_op_determinism()
