"""Schedules select the steps that are measured."""

import numpy as np
import pytest

from srel_tf import OptionError
from srel_tf.fit.schedules import as_schedule


@pytest.mark.parametrize("every", [1, 4, np.int64(4)])
def test_every_so_many_steps_from_step_0(every):
    is_due = as_schedule(every)
    assert [step for step in range(12) if is_due(step)] == list(range(0, 12, every))


def test_a_function_is_its_own_schedule():
    early_and_seldom = as_schedule(lambda step: step < 3 or step % 10 == 0)
    assert [step for step in range(25) if early_and_seldom(step)] == [0, 1, 2, 10, 20]


@pytest.mark.parametrize("every", [0, -9, 2.0, "9", None, True, [9]])
def test_anything_else_is_refused(every):
    with pytest.raises(OptionError, match=r"every=.*positive number of steps"):
        as_schedule(every)
