"""Some mutated inputs of `tests/frames/fuzz.py` for each reader.

`python -m tests.frames.fuzz` runs all 10,000.
"""

import pytest

from tests.frames import fuzz

COUNT = 40


@pytest.mark.parametrize("reader", fuzz.READERS)
@pytest.mark.filterwarnings("ignore")
def test_mutated_inputs_end_in_a_named_error_or_a_result(reader):
    count = COUNT // 4 if reader == "image folder" else COUNT
    outcomes, failures = fuzz.fuzz(reader, count, seed=1)
    assert not failures
    assert sum(outcomes.values()) == count
    assert outcomes["a named error"]  # Some mutations change content that is read.


def test_mutations_repeat():
    rngs = [fuzz.np.random.default_rng(3) for _ in range(2)]
    first, second = (
        [fuzz.mutated(b"0123456789" * 9, rng) for _ in range(50)] for rng in rngs
    )
    assert first == second
    assert len(set(first)) == 50
