"""Items 5–9 of `train.errata`: what the published classification code counted, averaged and plotted.

As in `train.errata.classification`, each function takes the `Evidence` and returns (check, effect).
"""

import numpy as np
import pandas as pd
from scipy.stats import hypergeom, t

import srel_tf
from srel_tf.files import read_json
from train.classification.experiment import SCHEDULES
from train.common import data
from train.errata.evidence import figure

K = 20  # Probe images a class.
# Training and "test" images a class, batch size; three classes each.
SIZES = {
    "SVHN": (4000, 800, 256),
    "CIFAR-10": (5000, 1000, 256),
    "CIFAR-100": (500, 100, 25),
}


# --- 5: the test set -------------------------------------------------------------------------------------------


def leaked_test_set(evidence):
    """5. The "test" images are images that the net is trained on, cropped and flipped by another draw."""
    shares = {split: share_trained_on(split) for split in ("train", "test")}
    check = (
        f"read as the code does, {shares['train']:.0%} of the digits' test images are training images, "
        f"{shares['test']:.0%} of the set's own; 1 in {2 * 9 * 9} is cropped and flipped alike in both"
    )
    return check, evidence.of_runs(
        "published", lambda path: _leaked_and_real(path, evidence)
    )


def share_trained_on(test_images):
    """Share of the test images of three digits that are training images too; test_images as in `data.load`."""
    digits = data.load("digits", classes=["3", "5", "8"], test_images=test_images)
    return np.isin(digits.test.ids, digits.train.ids).mean()


def _leaked_and_real(path, evidence):
    """Accuracies after the last epoch; of the real test images from another protocol's runs of the same trainings."""
    dataset = path.name.removesuffix("-published")
    real = [
        found[dataset]
        for p in ("crossed", "defined")
        if dataset in (found := evidence.directories(p))
    ]
    leaked = final_accuracies(path)
    text = f"{leaked['test'].mean():.3f} on the leaked images, {leaked['train'].mean():.3f} in training"
    if not real:
        return f"{text}; not measured: the same trainings with the real test images"
    others = final_accuracies(real[0]).reindex(leaked.index)
    gaps = ", ".join(
        f"{gap:+.3f}" for gap in (leaked["test"] - others["test"]).dropna()
    )
    return (
        f"{text}, {others['test'].mean():.3f} on the real test images ({real[0].name}, the same seeds; trainings "
        f"that are the same to the last bit: {len(same_trainings(path, real[0]))}); leaked minus real, by seed: "
        f"{gaps}"
    )


def final_accuracies(path):
    """Accuracies after the last epoch, a row a run, columns train and test."""
    history = srel_tf.read_frame(path / "history.csv")
    last = history[history["epoch"] == history["epoch"].max()]
    return last.pivot(index="run", columns="split", values="accuracy")


def same_trainings(path, other):
    """The runs that ended with the same weights and optimizer state in both directories."""
    digests = [
        {
            run: about["weights_sha256"]
            for run, about in read_json(p / "seeds.json").items()
        }
        for p in (path, other)
    ]
    return sorted(
        run
        for run, digest in digests[0].items()
        if digest and digests[1].get(run) == digest
    )


# --- 6: runs and bands -----------------------------------------------------------------------------------------


def three_runs(evidence):
    """6. A band of ± one population standard deviation of three runs, and what would cover the mean."""
    check = "; ".join(
        f"{n} runs: the sample deviation is {np.sqrt(n / (n - 1)):.3f} times the band, the 95% t-interval of the mean "
        f"{t_over_population(n):.2f} times; the band covers the mean with probability {band_coverage(n):.3f}"
        for n in (3, 5)
    )
    return f"normal runs; {check}", evidence.of_runs("published", _separated_bands)


def t_over_population(n, confidence=0.95):
    """Half-width of Student's interval for the mean of n values over their population standard deviation."""
    return t.ppf((1 + confidence) / 2, n - 1) / np.sqrt(n - 1)


def band_coverage(n):
    """Probability that mean ± population standard deviation of n normal values covers their expectation."""
    return 1 - 2 * t.sf(np.sqrt(n - 1), n - 1)


def _separated_bands(path):
    pairs = srel_tf.read_frame(path / "pairs.parquet")
    pairs = pairs[
        (pairs["update"] == "fresh_adam")
        & pairs["measure"].str.startswith("published_")
    ]
    return ", ".join(
        f"{measure}: intra-class band wholly above the inter-class one at {separated(rows, 1):.1%} of (class pair, "
        f"step), with t-intervals at {separated(rows, None):.1%}"
        for measure, rows in pairs.groupby("measure", sort=False)
    )


def separated(pairs, factor):
    """Share of (source class, other class, step) at which intra-class mean − width > inter-class mean + width.

    pairs: class pairs of one measure and rule, of several runs. width: `factor` population standard deviations over
    the runs; None: the 95% t-interval of their mean. NaN for one run, which has neither.
    """
    curves = pairs.groupby(["step", "source_class", "target_class"])["mean"]
    if (curves.size() < 2).any():
        return np.nan
    factors = curves.size().map(t_over_population) if factor is None else factor
    width = curves.std(ddof=0) * factors
    ends = pd.DataFrame(
        {"low": curves.mean() - width, "high": curves.mean() + width}
    ).reset_index()
    intra = ends[ends["source_class"] == ends["target_class"]].drop(
        columns="target_class"
    )
    inter = ends[ends["source_class"] != ends["target_class"]]
    both = inter.merge(
        intra, on=["step", "source_class"], suffixes=("_inter", "_intra")
    )
    return (both["low_intra"] > both["high_inter"]).mean()


# --- 7: the diagonal -------------------------------------------------------------------------------------------


def diagonal(evidence):
    """7. With the k diagonal terms the intra-class average moves towards 1 by 1/k of its distance."""
    off = 0.5
    matrix = np.full((K, K), off)
    np.fill_diagonal(matrix, 1)
    check = (
        f"with k = {K} the average is off + (1 − off)/{K}: intra- and inter-class entries alike of {off} give an "
        f"intra-class average of {matrix.mean():.3f}, above the inter-class one with no separation at all"
    )
    told = [
        evidence.of_runs(
            protocol,
            lambda path, chosen=chosen: ", ".join(
                f"{measure}, {rule}: intra {figure(path, measure, rule, 'intra')}, without the diagonal "
                f"{figure(path, measure, rule, 'off_intra')}, inter {figure(path, measure, rule, 'inter')}"
                for measure, rule in chosen
            ),
        )
        for protocol, chosen in (
            (
                "published",
                [("published_kl", "fresh_adam"), ("published_l2", "fresh_adam")],
            ),
            ("crossed", [("kl", "sgd η=0.0001"), ("l1", "sgd η=0.0001")]),
        )
    ]
    return check, "; ".join(told)


# --- 8: the axis -----------------------------------------------------------------------------------------------


def epochs_axis(evidence):
    """8. SVHN's 6 records an epoch on an axis of 7 an epoch; and the first record, which is after one update."""
    steps = {name: 3 * train // batch for name, (train, _, batch) in SIZES.items()}
    records = {name: measured_updates(count) for name, count in steps.items()}
    svhn = records["SVHN"]
    counts = ", ".join(
        f"{name} {len(records[name])} ({count} updates an epoch)"
        for name, count in steps.items()
    )
    check = (
        f"records in 7 epochs: {counts}; SVHN's last is after update {svhn[-1]}, at {svhn[-1] / steps['SVHN']:.2f} "
        f"epochs, and is drawn at {(len(svhn) - 1) / 7:.2f}; every first record is after update {svhn[0]}"
    )
    return check, "SVHN was not run; " + evidence.of_runs(
        "published", lambda path: _first_update(path, evidence)
    )


def measured_updates(steps_per_epoch, every=9, epochs=7):
    """The optimizer updates after which the published code measured, ascending."""
    is_due = SCHEDULES["epoch"](every, steps_per_epoch)
    return [step for step in range(epochs * steps_per_epoch + 1) if is_due(step)]


def _first_update(path, evidence):
    crossed = evidence.directories("crossed").get(path.name.removesuffix("-published"))
    if crossed is None:
        return "not measured: step 0 of the same trainings (protocol crossed)"
    start, first = (_first_means(p) for p in (crossed, path))
    return ", ".join(
        f"{measure}, fresh_adam, mean of {kind} at initialisation {start[measure, kind]:.3f}, after one update "
        f"{first[measure, kind]:.3f}"
        for measure, kind in first.index.intersection(start.index)
        if measure.startswith("published_")
    )


def _first_means(path):
    """Definition 3 at the first measured step under fresh_adam, mean over runs and classes, by measure and kind."""
    pairs = srel_tf.read_frame(path / "pairs.parquet")
    pairs = pairs[
        (pairs["update"] == "fresh_adam") & (pairs["step"] == pairs["step"].min())
    ]
    kind = np.where(pairs["source_class"] == pairs["target_class"], "intra", "inter")
    return pairs.groupby(["measure", kind], sort=False)["mean"].mean()


# --- 9: class-wise accuracies ----------------------------------------------------------------------------------


def class_accuracies(evidence):
    """9. Class-wise accuracies divide by the class size, though the images of the last batch are not counted."""
    told = []
    for name, (train, test, batch) in SIZES.items():
        for split, size in (("training", train), ("test", test)):
            seen, deviation = perfect_accuracy(size, 3, batch)
            told.append(f"{name} {split} {seen / (3 * size):.2%} ± {deviation:.2%}")
    seen, deviation = perfect_accuracy(1000, 10, 256)
    check = (
        f"a net without errors gets (mean ± deviation between classes) {', '.join(told)}; the images left out of a "
        "class are hypergeometric"
    )
    effect = (
        f"none on S_rel. Where three classes are chosen out of CIFAR-10's ten of 1,000 images, accuracies come out "
        f"{1 - seen / 10000:.2%} low, with a deviation of {deviation:.2%} between classes"
    )
    if evidence.history is not None:
        of_split = {
            split: evidence.history[f"{split}_accuracy"] for split in ("train", "test")
        }
        effect += (
            "; overall accuracies published are over what was counted: "
            + ", ".join(
                f"{multiples(of_split[split], n)} of {len(of_split[split])} {split} ones are multiples of 1/{n}"
                for split, n in (
                    ("train", 14848),
                    ("train", 15000),
                    ("test", 2816),
                    ("test", 3000),
                )
            )
        )
    return check, effect


def perfect_accuracy(class_size, classes, batch_size):
    """Of a net without errors: images counted over all classes, and the standard deviation of the accuracy of a class.

    The last, incomplete batch of a shuffled epoch leaves out a hypergeometric number of a class.
    """
    total = class_size * classes
    seen = total // batch_size * batch_size
    return seen, hypergeom.std(
        total, class_size, total - seen
    ) / class_size if seen < total else 0.0


def multiples(values, n, digits=6):
    """How many of the values, rounded to so many digits, are multiples of 1/n."""
    return int(
        (np.abs(values * n - np.round(values * n)) <= n * 0.51 * 10.0**-digits).sum()
    )
