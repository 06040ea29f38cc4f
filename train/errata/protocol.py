"""Items 5–9 of `train.errata`: counts, averages and plots of the published classification code.

Each check takes the `Evidence` and returns its `Findings`.
"""

import functools
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import hypergeom, t

import srel_tf
from srel_tf.files import read_json
from train.classification.experiment import SCHEDULES
from train.common import data
from train.errata.evidence import Evidence, Findings, central_values, extremes

K = 20  # Probe images per class.
# {data set: (training images per class, "test" images per class, batch size)}. Each data set has three classes.
SIZES = {
    "SVHN": (4000, 800, 256),
    "CIFAR-10": (5000, 1000, 256),
    "CIFAR-100": (500, 100, 25),
}


def leaked_test_set(evidence: Evidence) -> Findings:
    """Check item 5: the published "test" images are training images, cropped and flipped at random a second time."""
    names = {"as in the code": "train", "the set's own": "test"}
    findings = {
        f"share of digits' test images that are training images, {name}": share_trained_on(
            split
        )
        for name, split in names.items()
    }
    return findings | evidence.of_runs(
        "published", lambda path: _leaked_and_real(path, evidence)
    )


def share_trained_on(test_images: str) -> float:
    """Return the share of the test images of the digits 3, 5 and 8 that are also training images.

    Args:
        test_images: "train" or "test", as in `data.load`.

    Returns:
        The share.
    """
    digits = data.load("digits", classes=["3", "5", "8"], test_images=test_images)
    return np.isin(digits.test.ids, digits.train.ids).mean()


def _leaked_and_real(path: Path, evidence: Evidence) -> Findings:
    """Compare the accuracies after the last epoch on the leaked and on the real test images.

    Args:
        path: Directory of a condensed run of the protocol "published".
        evidence: Gives the directories of the protocols "crossed" and "defined". These protocols repeat the same
            trainings with the real test images.

    Returns:
        The findings.
    """
    dataset = path.name.removesuffix("-published")
    leaked = final_accuracies(path)
    findings = {
        "accuracy on the leaked images": leaked["test"].mean(),
        "accuracy on the training images": leaked["train"].mean(),
    }
    directories = [
        evidence.directories(name).get(dataset) for name in ("crossed", "defined")
    ]
    real_path = directories[0] or directories[1]
    if real_path is None:
        return findings | {"not measured: trainings with the real test images": np.nan}
    real = final_accuracies(real_path).reindex(leaked.index)["test"]
    name = f"accuracy on the real test images ({real_path.name}, the same seeds)"
    same = len(same_trainings(path, real_path))
    findings |= {
        name: real.mean(),
        "number of trainings with the same final weights": same,
    }
    gaps = (leaked["test"] - real).dropna()
    return findings | extremes(
        "accuracy on leaked minus real test images, over seeds", gaps
    )


def final_accuracies(path: Path) -> pd.DataFrame:
    """Read the accuracies after the last epoch of a condensed run: one row per run, with columns train and test."""
    history = srel_tf.read_frame(path / "history.csv")
    last = history[history["epoch"] == history["epoch"].max()]
    return last.pivot(index="run", columns="split", values="accuracy")


def same_trainings(path: Path, other: Path) -> list[str]:
    """List the runs that ended with the same weights and optimizer state in both directories."""
    seeds, other_seeds = (read_json(p / "seeds.json") for p in (path, other))
    return sorted(
        run
        for run, about in seeds.items()
        if about["weights_sha256"]
        and other_seeds.get(run, {}).get("weights_sha256") == about["weights_sha256"]
    )


def three_runs(evidence: Evidence) -> Findings:
    """Check item 6: how often a band of ± one population standard deviation of three runs covers the mean."""
    findings = {}
    for n in (3, 5):
        runs, ratio = f"{n} normal runs", np.sqrt(n / (n - 1))
        findings[f"{runs}: sample standard deviation / half-width of the band"] = ratio
        name = f"{runs}: half-width of a 95% t-interval / half-width of the band"
        findings[name] = t_over_population(n)
        findings[f"{runs}: probability that the band covers the mean"] = band_coverage(
            n
        )
    return findings | evidence.of_runs("published", _separated_bands)


def t_over_population(n: int, confidence: float = 0.95) -> float:
    """Return the half-width of Student's interval for the mean of n values, in population standard deviations."""
    return t.ppf((1 + confidence) / 2, n - 1) / np.sqrt(n - 1)


def band_coverage(n: int) -> float:
    """Return the probability that mean ± population standard deviation of n normal values covers the expected value."""
    return 1 - 2 * t.sf(np.sqrt(n - 1), n - 1)


def _separated_bands(path: Path) -> Findings:
    """Return how often bands and t-intervals of the published measures separate intra-class from inter-class curves."""
    pairs = srel_tf.read_frame(path / "pairs.parquet")
    is_published = pairs["measure"].str.startswith("published_")
    pairs = pairs[is_published & (pairs["update"] == "fresh_adam")]
    findings = {}
    for measure, rows in pairs.groupby("measure", sort=False):
        apart = (
            f"{measure}: share of (class pair, step) with intra-class above inter-class"
        )
        findings[f"{apart}, bands"] = separated(rows, 1)
        findings[f"{apart}, t-intervals"] = separated(rows, None)
    return findings


def separated(pairs: pd.DataFrame, factor: float | None) -> float:
    """Return the share of class pairs and steps at which intra-class mean − width > inter-class mean + width.

    Args:
        pairs: Class pairs of one measure and rule, of several runs.
        factor: The width in population standard deviations over the runs. If None, the width is half of the 95%
            t-interval of the mean over the runs.

    Returns:
        The share among all (source class, other class, step). NaN if there is only one run.
    """
    curves = pairs.groupby(["step", "source_class", "target_class"])["mean"]
    if (curves.size() < 2).any():
        return np.nan
    factors = curves.size().map(t_over_population) if factor is None else factor
    width = curves.std(ddof=0) * factors
    low, high = curves.mean() - width, curves.mean() + width
    ends = pd.DataFrame({"low": low, "high": high}).reset_index()
    is_intra = ends["source_class"] == ends["target_class"]
    both = ends[~is_intra].merge(
        ends[is_intra], on=["step", "source_class"], suffixes=("_inter", "_intra")
    )
    return (both["low_intra"] > both["high_inter"]).mean()


def diagonal(evidence: Evidence) -> Findings:
    """Check item 7: the k diagonal terms move the intra-class average towards 1, by 1/k of its distance from 1."""
    matrix = np.full((K, K), 0.5)
    np.fill_diagonal(matrix, 1)
    findings = {f"all entries 0.5, k = {K}: intra-class average": matrix.mean()}
    for protocol, measures, rule in (
        ("published", ("published_kl", "published_l2"), "fresh_adam"),
        ("crossed", ("kl", "l1"), "sgd η=0.0001"),
    ):
        averages = functools.partial(
            central_values,
            measures=measures,
            rules=[rule],
            quantities=("intra", "off_intra", "inter"),
        )
        findings |= evidence.of_runs(protocol, averages)
    return findings


def epochs_axis(evidence: Evidence) -> Findings:
    """Check item 8: SVHN has 6 records per epoch but is drawn as if it had 7; the first record is after one update."""
    findings: Findings = {}
    for name, (train, _, batch) in SIZES.items():
        steps = 3 * train // batch
        records = measured_updates(steps)
        findings |= {
            f"{name}: updates per epoch": steps,
            f"{name}: records in 7 epochs": len(records),
            f"{name}: first record after update": records[0],
            f"{name}: last record after update": records[-1],
            f"{name}: last record, true epoch": records[-1] / steps,
            f"{name}: last record, drawn at epoch": (len(records) - 1) / 7,
        }
    return findings | evidence.of_runs(
        "published", lambda path: _first_update(path, evidence)
    )


def measured_updates(
    steps_per_epoch: int, every: int = 9, epochs: int = 7
) -> list[int]:
    """List the optimizer updates after which the published code measures, ascending."""
    is_due = SCHEDULES["epoch"](every, steps_per_epoch)
    return [step for step in range(epochs * steps_per_epoch + 1) if is_due(step)]


def _first_update(path: Path, evidence: Evidence) -> Findings:
    """Compare the first record of protocol "published" (after one update) with step 0 of the same trainings."""
    crossed = evidence.directories("crossed").get(path.name.removesuffix("-published"))
    if crossed is None:
        return {"not measured: step 0 of the same trainings (protocol crossed)": np.nan}
    times = {"at initialisation": crossed, "after one update": path}
    return {
        f"{measure}, fresh_adam, mean of {kind} {time}": value
        for time, directory in times.items()
        for (measure, kind), value in _first_means(directory).items()
    }


def _first_means(path: Path) -> dict[tuple[str, str], float]:
    """Average the published measures over intra- and inter-class pairs at the first step, for the update fresh_adam.

    Args:
        path: Directory of a condensed run.

    Returns:
        {(measure, "intra" or "inter"): mean over runs and classes}.
    """
    pairs = srel_tf.read_frame(path / "pairs.parquet")
    is_adam = pairs["update"] == "fresh_adam"
    is_published = pairs["measure"].str.startswith("published_")
    is_first = pairs["step"] == pairs["step"].min()
    pairs = pairs[is_adam & is_published & is_first]
    kind = np.where(pairs["source_class"] == pairs["target_class"], "intra", "inter")
    return pairs.groupby(["measure", kind], sort=False)["mean"].mean().to_dict()


def class_accuracies(evidence: Evidence) -> Findings:
    """Check item 9: correct answers of a class are divided by the class size, but the last batch is not counted."""
    cases = {
        f"{name} {split}": (size, 3, batch)
        for name, (train, test, batch) in SIZES.items()
        for split, size in (("training", train), ("test", test))
    }
    cases["three chosen of CIFAR-10's ten classes"] = (1000, 10, 256)
    findings = {}
    for name, (size, classes, batch) in cases.items():
        seen, deviation = perfect_accuracy(size, classes, batch)
        findings[f"{name}: accuracy of a net without errors"] = seen / (classes * size)
        findings[f"{name}: standard deviation between classes"] = deviation
    if evidence.history is not None:
        for split, n in (
            ("train", 14848),
            ("train", 15000),
            ("test", 2816),
            ("test", 3000),
        ):
            values = evidence.history[f"{split}_accuracy"]
            name = f"published {split} accuracies that are multiples of 1/{n}, of {len(values)}"
            findings[name] = multiples(values, n)
    return findings


def perfect_accuracy(
    class_size: int, classes: int, batch_size: int
) -> tuple[int, float]:
    """Count the correct answers of a net without errors as the published code does.

    The last, incomplete batch of a shuffled epoch is not counted. The number of images of one class in this batch has a
    hypergeometric distribution.

    Args:
        class_size: Images of each class.
        classes: Number of classes.
        batch_size: Images of a batch.

    Returns:
        (images counted over all classes, standard deviation of the accuracy of a class).
    """
    total = class_size * classes
    n_left_out = total % batch_size
    seen = total - n_left_out
    if not n_left_out:
        return seen, 0.0
    return seen, hypergeom.std(total, class_size, n_left_out) / class_size


def multiples(values: pd.Series, n: int, digits: int = 6) -> int:
    """Count the values that may be multiples of 1/n, given that they are rounded to `digits` decimal places."""
    remainders = np.abs(values * n - np.round(values * n))
    return int((remainders <= n * 0.51 * 10.0**-digits).sum())
