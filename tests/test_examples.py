"""The examples in docstrings print the output that is written below them."""

import doctest
import importlib
import pkgutil

import pytest

import srel_tf

MODULES = [m.name for m in pkgutil.walk_packages(srel_tf.__path__, "srel_tf.")]
WITH_EXAMPLES = [
    name
    for name in MODULES
    if doctest.DocTestFinder().find(importlib.import_module(name))
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_of_docstrings(name):
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    outcome = doctest.testmod(importlib.import_module(name), optionflags=options)
    assert not outcome.failed
