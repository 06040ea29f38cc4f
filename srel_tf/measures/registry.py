"""The measures by name, and registration of custom measures."""

from srel_tf.errors import OptionError
from srel_tf.measures.distances import DEFINITIONS, RAW, Distance, Measure
from srel_tf.measures.published import PUBLISHED

BUILT_IN: dict[str, Measure] = DEFINITIONS | RAW | PUBLISHED
MEASURES: dict[str, Measure] = dict(BUILT_IN)


def register_measure(
    name: str,
    distance: Distance,
    *,
    first_order: Distance | None = None,
    probabilities: bool = False,
    raw: bool = False,
    degree: int = 1,
    tolerance: float = 1e-3,
) -> None:
    """Register a custom measure for `measure`, `attach_probe` and the frame's column "measure".

    S_rel(x', x) = D at x' / D at x, where D is a function of a `Change`: float64 predictions `before` and `after` of
    shape [..., C], their `difference`, and for probabilities `log_before` and `log_ratio` = log g⁺ − log g.

    An entry is valid if the rounding error of S is at most tolerance · (1 + S). The bound on this error is derived from
    the triangle inequality for D^(1/degree), which must hold at least for small changes. Norms (degree 1) and squares
    of norms (degree 2) satisfy this inequality.

    Args:
        name: name of the measure. A custom measure that already has this name is replaced. Names of built-in measures
            are not allowed.
        distance: D, a function from a `Change` [..., C] to a float64 tensor [...]. D is zero if nothing changes.
        first_order: D of a first-order change, for the limit η → 0. This function must be homogeneous of degree
            `degree`. For most norms, pass `distance` again. If None, the measure has no limit, and `estimator="limit"`
            raises an error.
        probabilities: whether D is defined for probability vectors only.
        raw: whether D always acts on the model's raw outputs, whatever `predictions` is set to.
        degree: the power p in D ∝ ‖change‖^p for small changes: 1 for norms, 2 for squares of norms.
        tolerance: the largest rounding error of a valid entry, in units of 1 + S.

    Raises:
        OptionError: if the name is built in, or an argument has the wrong type or value.

    Example:
        The Hellinger distance:

        >>> import tensorflow as tf, srel_tf
        >>> def hellinger(change):
        ...     root_ratio = tf.math.expm1(change.log_ratio / 2)  # √(g⁺/g) − 1
        ...     return tf.sqrt(tf.reduce_sum(change.before * root_ratio**2, axis=-1) / 2)
        >>> srel_tf.register_measure("hellinger", hellinger, probabilities=True)
    """
    if not isinstance(name, str) or not name:
        raise OptionError(
            f"register_measure({name!r}): give the measure's name as a string"
        )
    if name in BUILT_IN:
        raise OptionError(
            f"register_measure({name!r}): this name is built in; choose another one"
        )
    for option, function in (("distance", distance), ("first_order", first_order)):
        if not callable(function) and not (
            option == "first_order" and function is None
        ):
            raise OptionError(f"{option}={function!r}: give a function of a Change")
    if degree not in (1, 2) or not 0 < tolerance < 1:
        raise OptionError(
            f"degree={degree!r}, tolerance={tolerance!r}: give degree 1 or 2 and 0 < tolerance < 1"
        )
    MEASURES[name] = Measure(
        distance, distance, probabilities, first_order, raw, degree, tolerance
    )
