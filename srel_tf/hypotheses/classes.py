"""The claim on classifiers (Sections 1.3 and 2.1): intra-class S^{k,smooth} is above inter-class S^{k,smooth}."""

import numpy as np
import pandas as pd

from srel_tf.errors import FrameError
from srel_tf.frames.schema import with_name
from srel_tf.hypotheses.class_effects import CLAIMS, class_effects
from srel_tf.hypotheses.series import cube, groups
from srel_tf.hypotheses.verdicts import (
    Effect,
    Row,
    check_confidence,
    of_bootstrap,
    table,
)

MIN_EXAMPLES = 8


def class_claim(
    frame: pd.DataFrame,
    confidence: float = 0.95,
    diagonal: bool = False,
    resamples: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Check the claim on classifiers: one row per measure, update rule, estimator and part of the claim.

    Each effect is one number per seed. For a source class c, intra is S(c, c), and inter is S(c', c) for each other
    class c'. Here S is S^{k,smooth}, computed as in `srel_tf.smooth`. S counts as missing if less than half of its
    entries are valid. A change in time is the least-squares slope of log₂ S times the measured span, averaged over
    classes (intra) or class pairs (inter). The bounds of each claim are given in `claim_low` and `claim_high`.

    The interval combines Student's t over seeds with a bootstrap, which draws examples within their classes. In each
    resample, an example has the same weight in all seeds, both as a source and as a target.

    Args:
        frame: S_rel frame of several seeds with classes (`srel_tf.frames.COLUMNS`).
        confidence: Level of the intervals.
        diagonal: Whether to include the pairs of an example with itself, as Definition 3 of the paper does. By default
            they are left out. Their S_rel is 1 for every network. If the S_rel of all other pairs is below 1, the
            pairs on the diagonal are enough to make intra higher than inter.
        resamples: Number of resamples of the bootstrap over examples.
        seed: Seed of the bootstrap.

    Returns:
        Frame of `srel_tf.hypotheses.COLUMNS`. A verdict is "undecided" if there are fewer than 3 seeds, or if a class
        has fewer than 8 examples. Claims on changes in time also need 3 steps.

    Raises:
        FrameError: As in `srel_tf.hypotheses.series.groups`. Also if the frame has fewer than two classes, or if an
            example has no class or two classes.
        OptionError: `confidence` is not in [0.5, 1).

    Example:
        Simulated S_rel of 3 seeds at 3 steps, for two classes of 8 examples: 1 within a class, 1/2 between classes.

        >>> import numpy as np
        >>> import pandas as pd
        >>> from srel_tf.hypotheses import class_claim
        >>> run, step, source, target = (index.ravel() for index in np.indices((3, 3, 16, 16)))
        >>> frame = pd.DataFrame({"run": run, "seed": run, "step": step, "source_id": source, "target_id": target})
        >>> frame = frame.assign(source_class=source // 8, target_class=target // 8)
        >>> is_intra = frame["source_class"] == frame["target_class"]
        >>> noise = np.random.default_rng(0).uniform(0.9, 1.1, size=len(frame))
        >>> frame = frame.assign(srel=np.where(is_intra, 1.0, 0.5) * noise, valid=True)
        >>> verdicts = class_claim(frame.assign(measure="kl", update="sgd", estimator="exact"))
        >>> verdicts.set_index("claim")["verdict"]["intra above inter"]
        'supported'
    """
    check_confidence(confidence)
    rows: list[Row] = []
    generator = np.random.default_rng(seed)
    # `groups` checks the frame. The rows that it returns are not used, because they lack the diagonal.
    for key, _ in groups(frame):
        part = _rows_of_group(frame, key, diagonal)
        class_of = _classes(part)
        sizes = class_of.astype(str).value_counts()
        least = int(sizes.min())
        reason = ""
        if least < MIN_EXAMPLES:
            reason = f"a class has {least} examples: {MIN_EXAMPLES} are needed"
        about = {
            "hypothesis": "classification",
            **key,
            "scope": f"{len(sizes)} classes",
        }
        runs = [cube(of_run) for _, of_run in part.groupby("replicate")]
        of_seeds, draws = class_effects(runs, class_of, resamples, generator)
        for claim, values, draws_of_claim in zip(CLAIMS, of_seeds, draws, strict=True):
            shared = of_bootstrap(draws_of_claim, least, confidence)
            rows.append(Effect(claim, values, shared).row(about, confidence, reason))
    return table(rows)


def _rows_of_group(
    frame: pd.DataFrame,
    key: dict[str, str],
    diagonal: bool,
) -> pd.DataFrame:
    """Select the rows of one group, add a column `replicate`, and replace invalid S_rel by NaN.

    Args:
        frame: The whole frame.
        key: Probe, measure, update rule and estimator.
        diagonal: Whether to keep the pairs of an example with itself.

    Returns:
        The rows.
    """
    frame = with_name(frame)
    part = frame[(frame[list(key)] == list(key.values())).all(axis=1)]
    if not diagonal:
        part = part[part["source_id"] != part["target_id"]]
    seeds = part["seed"].astype("string").fillna("")
    is_valid = part["valid"].eq(True).fillna(False)
    srel = part["srel"].where(is_valid)
    return part.assign(
        replicate=part["run"].astype(str) + "/" + seeds,
        srel=srel.replace([np.inf, -np.inf], np.nan),
    )


def _classes(part: pd.DataFrame) -> pd.Series:
    """Return the class of each example.

    Args:
        part: Rows with the ids and classes of sources and targets.

    Returns:
        Classes, indexed by id.

    Raises:
        FrameError: An example has no class or two classes, or the frame has only one class.
    """
    columns = ["id", "class"]
    sources = part[["source_id", "source_class"]].set_axis(columns, axis=1)
    targets = part[["target_id", "target_class"]].set_axis(columns, axis=1)
    named = pd.concat([sources, targets]).drop_duplicates()
    is_empty = named["class"].isna() | (named["class"].astype(str) == "")
    n_classes = part["source_class"].nunique()
    if is_empty.any() or n_classes < 2:
        raise FrameError(
            "the claim compares classes: source_class must hold at least two names, and no source_class or "
            "target_class may be empty"
        )
    is_second = named["id"].duplicated()
    if is_second.any():
        first = named.loc[is_second, "id"].iloc[0]
        raise FrameError(
            f"example {first!r} belongs to two classes: give each example one class"
        )
    return named.set_index("id")["class"].sort_index(key=lambda ids: ids.astype(str))
