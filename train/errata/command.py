"""Errata: where the paper's text and its published code disagree, each item checked by a computation of ours.

python -m train.errata                       reads results/, writes results/replication/errata.csv
python -m train.errata --published-dir DIR   with the published curves cifar10_srel.csv, cifar10_history.csv

An item has a number (1–9 classification, 10–15 penalised regression, 16–22 the text itself), what the text says, what
the code does or the text itself implies, the check, and the effect on results. Effects on classification are read from
our runs (`train.condense`); without them the command says what it could not measure.
"""

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

import srel_tf
from train.common import cli
from train.errata import classification, penalized, protocol, theorems
from train.errata.evidence import Evidence


class Item(NamedTuple):
    subject: str
    text: str
    code: str
    examine: object  # Evidence -> (check, effect)


ITEMS = {
    1: Item(
        "KL (Definition 2)",
        "KL(g⁺, g) = Σ g⁺ log(g⁺/g)",
        "kl_div is given probabilities where it takes log-probabilities: mean over classes of p (log p − p⁺), 1e-8 "
        "added to the denominator",
        classification.published_kl,
    ),
    2: Item(
        "fictitious step",
        "w⁺ = w − η ∇ℓ",
        "one step of a new Adam (η = 1e-4, no weight decay) on a copy",
        classification.fresh_adam,
    ),
    3: Item(
        "Definition 1 on softmax outputs",
        "ℓ1 norm for both changes",
        "mean of |Δp| at x' over the root mean square of Δp at x",
        classification.published_l2,
    ),
    4: Item(
        "ε",
        "none; S_rel is undefined where x does not move",
        "1e-8 is added to denominators only",
        classification.epsilon,
    ),
    5: Item(
        "test set",
        "the sets' own test images (CIFAR-100: 100 a class)",
        "a fifth of the training images, augmented by another draw",
        protocol.leaked_test_set,
    ),
    6: Item(
        "runs and bands",
        "5 runs, standard deviation",
        "3 runs, population standard deviation",
        protocol.three_runs,
    ),
    7: Item(
        "diagonal",
        "mean over k × k pairs of two sets of k points; for one class it is not said whether they are the same",
        "the same k points: k of the k² terms are S(x, x)",
        protocol.diagonal,
    ),
    8: Item(
        "axis of epochs",
        "curves over 7 epochs",
        "7 records an epoch are assumed, SVHN has 6; the first record is after one update",
        protocol.epochs_axis,
    ),
    9: Item(
        "class-wise accuracies",
        "the top-3 classes by class-wise accuracy",
        "correct answers over the whole class, though the last, incomplete batch is dropped",
        protocol.class_accuracies,
    ),
    10: Item(
        "ridge in eq. 3",
        "M, T and h̃ have Nλ₁/K",
        "the gradient of eq. 3 has λ₁/K",
        penalized.ridge_coefficient,
    ),
    11: Item(
        "T in Theorem 3.2",
        "no 1/N before h hᵀ",
        "1/N before h hᵀ in the numerator alone",
        penalized.stray_one_over_n,
    ),
    12: Item(
        "average of pairs",
        "over 20 pairs",
        "20 pairs are summed and divided by 400",
        penalized.divided_by_400,
    ),
    13: Item(
        "synthetic classes",
        "variance 2 in the class of mean 1; the sampled point has label e₁, mean 1",
        "standard deviation 2; the sampled point comes from the class of mean 9",
        penalized.variance_and_classes,
    ),
    14: Item(
        "intra-class pairs",
        "both points of one class (printed “inter-class, … labels e₁ only”)",
        "pairs of the two classes, as in the inter-class notebook",
        penalized.pairs_of_both_classes,
    ),
    15: Item(
        "empirical loss",
        "eq. 3",
        "broadcasting adds up the error to both labels",
        penalized.loss_of_both_labels,
    ),
    16: Item(
        "Theorem 5.3, eqs. 38, 39",
        "β₂₂(x')² in k₂ and in the first factor",
        "eq. 37 and the remark have β₂₂(x)²; E[β₁₁β₂₂] = 0 is needed and not said",
        theorems.theorem_5_3,
    ),
    17: Item(
        "eq. 14",
        "no absolute values",
        "eq. 13, of which it is a case, has them",
        theorems.absolute_values,
    ),
    18: Item(
        "Theorem 5.1",
        "a time-independent upper bound",
        "the bound has w_t in it; P(x, x') alone is independent of time",
        theorems.bound_in_time,
    ),
    19: Item(
        "Theorem 4.3, Figure 10",
        "a lower bound, about which the curve fluctuates",
        "once no ReLU clips S_rel is the bound itself; at convergence the differences are 0/0 in finite precision",
        theorems.attained_bound,
    ),
    20: Item(
        "lost settings",
        "Figure 10's bound is ~1.4; x', the pairs of Figure 12 and the table of Figures 3–5 are not in the text "
        "that we have",
        "no code that we have says",
        theorems.lost_choices,
    ),
    21: Item(
        "statements on all pairs",
        "Hypothesis 1.2(a); S_rel non-decreasing later on; falling with distance; ‖w_t − w*‖ < 1e-6 eventually",
        "the closed forms have counterexamples",
        theorems.all_pairs,
    ),
    22: Item(
        "Theorem 5.2",
        "w_r(0)² in (0, a_r/b_r)",
        "sufficient, not necessary",
        theorems.theorem_5_2_range,
    ),
}


def errata(evidence, numbers=ITEMS):
    """The table: columns number, subject, text, code, check, effect, a row an item."""
    rows = []
    for number in numbers:
        item = ITEMS[number]
        check, effect = item.examine(evidence)
        rows.append(
            {"number": number, **item._asdict(), "check": check, "effect": effect}
        )
    return pd.DataFrame(rows).drop(columns="examine")


def show(row):
    """An item as a terminal shows it."""
    print(f"\n{row.number}. {row.subject}")
    for name in ("text", "code", "check", "effect"):
        print(
            textwrap.fill(
                f"{name}: {getattr(row, name)}",
                118,
                initial_indent="   ",
                subsequent_indent="      ",
            )
        )


@cli.command()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m train.errata", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        help="what train.condense wrote",
    )
    parser.add_argument(
        "--published-dir",
        type=Path,
        metavar="DIR",
        help="the published CIFAR-10 curves, if you have them",
    )
    parser.add_argument(
        "--items",
        type=int,
        nargs="+",
        choices=list(ITEMS),
        metavar="N",
        help="only these",
    )
    parser.add_argument("--out", type=Path, help="default: RESULTS/replication")
    options = parser.parse_args(arguments)
    out = options.out or options.results / "replication"
    found = errata(
        Evidence(options.results, *_curves(options.published_dir)),
        options.items or ITEMS,
    )
    out.mkdir(parents=True, exist_ok=True)
    written = srel_tf.write_frame(found, out / "errata.csv")
    for row in found.itertuples():
        show(row)
    print(f"\nwritten:\n  {written}")


def _curves(directory):
    names = ("srel", "history") if directory else ()
    return [srel_tf.read_frame(directory / f"cifar10_{name}.csv") for name in names]
