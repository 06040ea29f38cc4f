"""Load image classification sets as arrays: choose classes, standardise, optionally augment once, and fingerprint.

data = load("cifar10", classes=["airplane", "automobile", "ship"], augment="frozen")
data.train.x, data.train.y, data.train.ids, data.class_names, data.fingerprint
"""

import hashlib
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train.common.image_sets import DatasetError, Examples, ImageSet, Size, open_set

__all__ = ["DatasetError", "ImageData", "Split", "load"]

# CIFAR-10's constants, which the published experiments use for all three data sets.
PUBLISHED_SETS = ("cifar10", "cifar100", "svhn_cropped")
PUBLISHED_MEAN = np.array([0.4914, 0.4822, 0.4465])
PUBLISHED_STD = np.array([0.2023, 0.1994, 0.2010])


@dataclass(frozen=True, eq=False)
class Split:
    """Examples for training or for testing, in the order of the data set.

    Attributes:
        x: float32 [N, H, W, C], standardised per channel.
        y: int64 [N], labels 0 .. K-1, which are positions in `ImageData.class_names`.
        ids: int64 [N], the position of each example in the original split (for digits, in the whole set), counted
            before classes are chosen. The ids of an image do not depend on classes, augmentation or seed.
    """

    x: np.ndarray
    y: np.ndarray
    ids: np.ndarray


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set ready for training.

    Attributes:
        name: Name of the set.
        class_names: Class names in the order of the labels.
        train: Examples to train on.
        test: Examples to test on.
        mean: float64 [C], the mean in x = (intensity - mean) / std, where intensities are in [0, 1].
        std: float64 [C], the standard deviation in the same formula.
        fingerprint: Hex SHA-256 of images, labels 0 .. K-1 and ids, including their types, shapes and order. The hash
            is computed before augmentation and standardisation, so it does not depend on the seed. With
            test_images="train" the test split is not read, and the hash covers only the training split.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    mean: np.ndarray
    std: np.ndarray
    fingerprint: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(H, W, C)"""
        return self.train.x.shape[1:]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def load(
    name: str,
    data_dir: str | Path | None = None,
    classes: Sequence[str | int] | str | None = None,
    augment: str = "none",
    test_images: str = "test",
    seed: int = 0,
    image_size: int | tuple[int, int] | None = None,
    download: bool = True,
) -> ImageData:
    """Load an image classification set.

    Intensities are in [0, 1] before standardisation (8-bit values / 255). cifar10, cifar100 and svhn_cropped are
    standardised with the published constants, which are those of CIFAR-10. Other sets are standardised with the mean
    and the standard deviation of their training images of the chosen classes, per channel and before augmentation.

    Args:
        name: `digits`: scikit-learn's digits, without a download. Every fourth image of a class is a test image.
            `folder:DIR`: the images in DIR/train/CLASS/*.png and DIR/test/CLASS/*.png. Any other name: an image
            classification set of TFDS, for example `cifar10`, `cifar100`, `svhn_cropped` (short: `svhn`) or
            `fashion_mnist`. To choose a configuration or a version, give `NAME/CONFIG:VERSION`.
        data_dir: Directory of prepared TFDS sets; None means the default of TFDS. Reading a prepared set does not need
            a network.
        classes: Class names, or integer labels of the set. The classes get new labels 0 .. K-1 in the given order. A
            string that is not a class name is read as an integer label. None means every class that has images.
        augment: "none", or "frozen" for the published augmentation: a random crop from the image padded by 4 black
            pixels on each side, and a random horizontal flip. Crop and flip are drawn once for each training image and
            stay the same in all epochs.
        test_images: "test": the split `test` of the set, or the split `validation` if there is no `test`. These images
            are never augmented. "train": a random fifth of the *training* images of each class, as in the published
            code. If `augment` is "frozen", they get a second, independent crop and flip. THIS IS LEAKED DATA: the net
            is trained on these images. The option exists only for the replication.
        seed: Seed of the augmentation and, with test_images="train", of the choice of the test images.
        image_size: Side length, or (height, width), to which images are resized (bilinear, antialiased). Required if
            images have different sizes.
        download: Whether TFDS may download and prepare a missing set.

    Raises:
        DatasetError: If the set cannot be found, downloaded or read; if a class is unknown, is chosen twice or has no
            images; if a label is out of range; if a pixel is not finite; if a channel is constant; or if images have
            different sizes and `image_size` is not given.
        KeyError: If `augment` or `test_images` is not one of the values above.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    augmented = AUGMENTATIONS[augment]
    is_leaked = {"test": False, "train": True}[test_images]
    image_set = open_set(name, data_dir, download)
    labels = None if classes is None else _choose(classes, image_set)
    splits = _splits(image_set, is_leaked)
    read = [_read(image_set, split, labels, size) for split in splits]
    if labels is None:
        labels = sorted(set().union(*(examples.labels.tolist() for examples in read)))
    read = [
        _renumber(image_set, split, examples, labels)
        for split, examples in zip(splits, read, strict=True)
    ]
    sizes = [examples.images.shape[1:] for examples in read]
    if sizes[0] != sizes[-1]:
        raise DatasetError(
            f"training and test images of {name!r} have different sizes, {sizes}: give image_size"
        )
    fingerprint = _fingerprint(read)
    mean, std = _statistics(read[0].images, image_set.name)

    train_draw, fifth_draw, test_draw = np.random.default_rng(seed).spawn(3)
    train, test = read[0], read[-1]
    if is_leaked:
        fifth = draw_fifth(train.labels, fifth_draw)
        test = Examples(*(part[fifth] for part in train))
        test = test._replace(images=augmented(test.images, test_draw))
    train = train._replace(images=augmented(train.images, train_draw))
    return ImageData(
        name=image_set.name,
        class_names=tuple(image_set.class_names[label] for label in labels),
        train=Split(_standardise(train.images, mean, std), train.labels, train.ids),
        test=Split(_standardise(test.images, mean, std), test.labels, test.ids),
        mean=mean,
        std=std,
        fingerprint=fingerprint,
    )


def crop_and_flip(
    images: np.ndarray, rng: np.random.Generator, padding: int = 4
) -> np.ndarray:
    """Crop each image at random from the image padded with zeros, and flip it with probability 1/2.

    The transformation is that of torchvision's RandomCrop(size, padding) and RandomHorizontalFlip.

    Args:
        images: [N, H, W, C] of any type, before standardisation.
        rng: Random generator. It draws first the row and column offsets of the crops [N, 2], then the flips [N].
        padding: Number of zeros that are added on each side.
    """
    count, height, width, _ = images.shape
    row, column = rng.integers(0, 2 * padding + 1, size=(count, 2)).T
    flipped = np.asarray(rng.random(count)) < 0.5
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, (height, width), axis=(1, 2)
    )
    crops = np.moveaxis(
        windows[np.arange(count), row, column], 1, -1
    )  # from [N, C, H, W]
    return np.where(flipped[:, None, None, None], crops[:, :, ::-1], crops)


def draw_fifth(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw without replacement a fifth of the examples of each class (rounded down).

    Args:
        labels: Labels [N] of the examples.
        rng: Random generator.

    Returns:
        Positions of the drawn examples in ascending order.

    Raises:
        DatasetError: If a class has fewer than 5 examples.
    """
    drawn = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if members.size < 5:
            raise DatasetError(
                f"class {label} has {members.size} training images, but drawing a fifth for testing needs at least 5: "
                'choose other classes, or test_images="test"'
            )
        drawn.append(rng.choice(members, members.size // 5, replace=False))
    return np.sort(np.concatenate(drawn))


AUGMENTATIONS = {"none": lambda images, rng: images, "frozen": crop_and_flip}


def _splits(image_set: ImageSet, is_leaked: bool) -> list[str]:
    needed = ["train"] if is_leaked else ["train", "test"]
    if "test" in needed and "test" not in image_set.splits:
        needed[1] = "validation"
    if not set(needed) <= set(image_set.splits):
        raise DatasetError(
            f"{image_set.name!r} in {image_set.where} has splits {', '.join(image_set.splits)}; "
            f"it needs train{', and test or validation' if len(needed) > 1 else ''}"
        )
    return needed


def _choose(classes: Sequence[str | int] | str, image_set: ImageSet) -> list[int]:
    """Return the label that each of `classes` has in the image set, in the given order."""
    names = image_set.class_names
    labels = []
    for wanted in [classes] if isinstance(classes, str) else classes:
        label = names.index(wanted) if wanted in names else _as_label(wanted)
        if not 0 <= label < len(names):
            raise DatasetError(
                f"{image_set.name!r} has no class {wanted!r}; choose from {_listed(names)}"
            )
        if label in labels:
            raise DatasetError(
                f"class {names[label]!r} (label {label}) is chosen twice in {list(classes)}: name it only once"
            )
        labels.append(label)
    if not labels:
        raise DatasetError(
            f"no class chosen; choose from the classes of {image_set.name!r}: {_listed(names)}"
        )
    return labels


def _as_label(wanted: Any) -> int:
    try:
        return int(wanted) if isinstance(wanted, str) else operator.index(wanted)
    except (TypeError, ValueError):
        return -1


def _listed(names: Sequence[str], most: int = 100) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _read(
    image_set: ImageSet, split: str, labels: Sequence[int] | None, image_size: Size
) -> Examples:
    """Read and check the examples whose label is in `labels` (None: all examples)."""
    examples = image_set.read(split, labels, image_size)
    there = f"split {split!r} of {image_set.name!r} in {image_set.where}"
    if labels is None and not examples.labels.size:
        raise DatasetError(f"{there} has no images: choose another set")
    known = (examples.labels >= 0) & (examples.labels < len(image_set.class_names))
    if not known.all():
        at = int(np.argmin(known))
        raise DatasetError(
            f"example {examples.ids[at]} of {there} has label {examples.labels[at]}, "
            f"out of range 0 .. {len(image_set.class_names) - 1}: correct the label, or prepare the set again"
        )
    if examples.images.dtype.kind == "f":
        finite = np.isfinite(examples.images).reshape(len(examples.images), -1)
        if not finite.all():
            at = int(np.argmin(finite.all(axis=1)))
            value = examples.images[at].reshape(-1)[np.argmin(finite[at])]
            raise DatasetError(
                f"example {examples.ids[at]} of {there} has a pixel of value {value}: repair or remove it"
            )
    return examples


def _renumber(
    image_set: ImageSet, split: str, examples: Examples, labels: Sequence[int]
) -> Examples:
    """Replace `labels` by 0 .. K-1 in the given order. Every label in `labels` must occur in the split."""
    for label in labels:
        if label not in examples.labels:
            found = set(examples.labels) & set(labels)
            names = [image_set.class_names[label] for label in sorted(found)]
            raise DatasetError(
                f"class {image_set.class_names[label]!r} (label {label}) has no images in split {split!r} of "
                f"{image_set.name!r} in {image_set.where}; chosen classes with images there: {_listed(names) or 'none'}"
            )
    number = np.empty(len(image_set.class_names), np.int64)
    number[labels] = np.arange(len(labels))
    return examples._replace(labels=number[examples.labels])


def _fingerprint(read: Sequence[Examples]) -> str:
    digest = hashlib.sha256()
    for array in (part for examples in read for part in examples):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _statistics(images: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and standard deviation [C] of intensities in [0, 1], in float64.

    For sets in `PUBLISHED_SETS` with 3 channels, return the published constants instead.
    """
    if re.split("[/:]", name)[0] in PUBLISHED_SETS and images.shape[-1] == 3:
        return PUBLISHED_MEAN.copy(), PUBLISHED_STD.copy()
    full = _full_intensity(images)
    mean = images.mean(axis=(0, 1, 2), dtype=np.float64) / full
    # Process 1,024 images at a time to limit memory.
    parts = (images[start : start + 1024] for start in range(0, len(images), 1024))
    square = sum(np.square(part / full - mean).sum(axis=(0, 1, 2)) for part in parts)
    std = np.sqrt(square / (images.size / images.shape[-1]))
    if not std.all():
        constant = np.flatnonzero(std == 0).tolist()
        raise DatasetError(
            f"channels {constant} of the training images of {name!r} are constant, so they cannot be divided by their "
            "standard deviation, which is 0: remove these channels"
        )
    return mean, std


def _standardise(images: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    x = np.divide(images, np.float32(_full_intensity(images)), dtype=np.float32)
    x -= mean.astype(np.float32)
    x /= std.astype(np.float32)
    return x


def _full_intensity(images: np.ndarray) -> float:
    return np.iinfo(images.dtype).max if images.dtype.kind in "iu" else 1.0
