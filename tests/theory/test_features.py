"""Errors of the synthetic set-up of Section 3.1. Its data and pairs are tested with the statements of Section 3."""

import numpy as np
import pytest

from srel_tf.errors import AssumptionError, OptionError, ShapeError
from srel_tf.theory import random_relu_features, sample_pairs


@pytest.mark.parametrize("name", ["width", "dimension", "per_class"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "3", None])
def test_counts_are_whole_numbers(name, value):
    counts = {"width": 3, "dimension": 4, "per_class": 2}
    assert random_relu_features(**counts)[0].shape == (4, 3)
    with pytest.raises(
        ShapeError, match=f"{name} must be a whole number >= 1; given {name}={value!r}"
    ):
        random_relu_features(**(counts | {name: value}))


def test_other_bad_input_is_named():
    with pytest.raises(AssumptionError, match="variance"):
        random_relu_features(3, variance=0.0)
    with pytest.raises(OptionError, match="kind"):
        sample_pairs(np.repeat([0, 1], 5), "both", 1)
    with pytest.raises(ShapeError, match="count=-1"):
        sample_pairs(np.repeat([0, 1], 5), "inter", -1)
    with pytest.raises(AssumptionError, match="given \\(5, 5\\)"):
        sample_pairs(np.repeat([0, 1], 5), "inter", 6)
