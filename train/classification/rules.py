"""Names of fictitious steps in `--update`: sgd, sgd@1e-3, optimizer, fresh_adam@1e-4, limit."""

from collections.abc import Sequence
from typing import NamedTuple

from srel_tf import OptionError


class Rule(NamedTuple):
    """Arguments of `attach_probe` for a fictitious step. A `learning_rate` of None means the η of the training."""

    update: str
    learning_rate: float | None
    estimator: str
    measures: tuple


def parse_rules(
    names: Sequence[str],
    measures: Sequence[str],
    training_rate: float,
    learning_rate: float | None = None,
    estimator: str = "exact",
) -> list[Rule]:
    """Parse the names of rules.

    Args:
        names: Each name is RULE, or RULE@η for a step with this η. "limit" means sgd with η → 0. The `published_`
            measures are left out for "limit", because their limit is undefined.
        measures: Measures for each rule.
        training_rate: The η of the training.
        learning_rate: The η of rules without @η; None means the η of the training.
        estimator: Estimator of all rules except "limit".

    Raises:
        OptionError: If an η is not a positive number; if two names mean the same rule; if "limit" is given with an η;
            or if "limit" is given and none of the measures has a limit.
    """
    rules = {}
    for name in names:
        rule = _parse(name, tuple(measures), learning_rate, estimator)
        same = rule._replace(learning_rate=rule.learning_rate or training_rate)
        if same in rules:
            raise OptionError(
                f"--update {' '.join(names)}: {name} is given twice (η of the training: {training_rate:g}); "
                "remove one of the two"
            )
        rules[same] = rule
    return list(rules.values())


def _parse(
    name: str, measures: tuple[str, ...], learning_rate: float | None, estimator: str
) -> Rule:
    update, at, eta = name.partition("@")
    if at:
        try:
            learning_rate = float(eta)
        except ValueError:
            learning_rate = 0.0
        if not 0 < learning_rate < float("inf"):
            raise OptionError(
                f"--update {name}: {eta!r} is not a step length; give a positive number, for example {update}@1e-3"
            )
    if update != "limit":
        return Rule(update, learning_rate, estimator, measures)
    if at:
        raise OptionError(
            f"--update {name}: the limit η → 0 has no step length; write limit"
        )
    measures = tuple(m for m in measures if not m.startswith("published_"))
    if not measures:
        raise OptionError(
            "--update limit: none of the given measures has a limit η → 0; add kl, l1 or l2 to --measures"
        )
    return Rule("sgd", None, "limit", measures)
