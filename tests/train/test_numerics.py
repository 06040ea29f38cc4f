"""`train.numerics`: the counts of its table on made-up matrices, its reference, a net that does not converge."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.nets import classifier, digits
from train import numerics, numerics_table


class Measured:
    """A result of one measure with S_rel `s`, NaN where it is not valid."""

    def __init__(self, s, methods=("finite_step",)):
        self._s = np.array(s)
        self.matrices = {"l1": SimpleNamespace(method=np.array(methods, dtype=object))}

    def valid(self, measure):
        return np.isfinite(self._s)

    def matrix(self, measure):
        return self._s


def test_counts_of_valid_entries_and_errors_in_units_of_the_tolerance():
    nan = np.nan
    reference, known = (
        np.array([[1.0, 3.0], [1.0, 0.0], [nan, 1.0]]),
        np.array([[True, True], [True, True], [False, True]]),
    )
    exact = Measured([[1.0, 3.0], [nan, nan], [2.0, 1.003]])
    auto = Measured([[1.0, 3.0], [1.001, 0.0], [1.0, 1.0]], ["finite_step", "limit_float64", "finite_step_float64"])
    found = numerics_table.comparison({"exact": exact, "auto": auto}, "l1", reference, known)
    assert {k: found[k] for k in ("entries", "reference", "sources", "limit_rows", "float64_rows")} == {
        "entries": 6, "reference": 5, "sources": 3, "limit_rows": 1, "float64_rows": 1,
    }  # fmt: skip
    assert (found["exact_valid"], found["auto_valid"]) == (4, 6)
    assert (found["exact_unchecked"], found["auto_unchecked"]) == (1, 1)
    assert found["exact_worst"] == pytest.approx(1.5)
    assert found["auto_worst"] == pytest.approx(0.5)
    assert (found["exact_outside"], found["auto_outside"]) == (1, 0)


def test_reference_is_exact_where_float64_resolves_it_else_the_limit_where_that_is_near():
    nan = np.nan
    limit = Measured([[2.0, 2.0, 2.0]])
    steps = {eta: Measured([[nan, nan, 2.1]]) for eta in numerics.ETAS}
    # The gap to the limit is 0.01 at 1e-4, so 1e-6 of it, 1e-8, at 1e-8 and 0.01 at 1e-4 itself.
    steps[1e-4] = Measured([[2.01, nan, 2.1]])
    net = SimpleNamespace(optimizer=SimpleNamespace(learning_rate=None))
    instruments = {"limit": lambda: limit, "exact": lambda: steps[net.optimizer.learning_rate]}
    reference = numerics.Reference(net, instruments)
    s, known = reference.of(1e-8, "l1")
    np.testing.assert_array_equal(known, [[True, False, True]])
    np.testing.assert_array_equal(s, [[2.0, nan, 2.1]])
    s, known = reference.of(1e-5, "l1")
    np.testing.assert_array_equal(known, [[False, False, True]])  # 1e-3 away there, above a share of its tolerance.


def test_a_net_that_does_not_converge_is_told():
    x, y = digits(per_class=2)
    with pytest.raises(numerics.NotConverged, match=r"training loss .* after 0 epochs, above 0\.3"):
        numerics.train_until(classifier("mlp"), SimpleNamespace(x=x, y=y), below=0.3, max_epochs=0)
