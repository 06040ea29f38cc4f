"""Tests of arrays from image sets: classes, standardisation, augmentation, the fifth for testing, the fingerprint."""

import importlib
import sys
from unittest import mock

import numpy as np
import pytest
from sklearn.datasets import load_digits

from srel_tf.errors import SRelError
from tests.train.tfds_sets import random_images, write_set
from train.common.data import DatasetError, crop_and_flip, draw_fifth, load

NAMES = ["airplane", "automobile", "bird", "ship"]
TRAIN = random_images(60), np.arange(60) % 4
TEST = random_images(20, seed=1), np.arange(20)[::-1] % 4
PUBLISHED = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    write_set(root, "cifar10", {"train": TRAIN, "test": TEST}, NAMES, shard=20)
    write_set(
        root, "svhn_cropped", {"train": TRAIN, "test": TEST}, ["0", "1", "2", "3"]
    )
    grey = random_images(30, channels=1), np.arange(30) % 3
    write_set(root, "grey", {"train": grey, "validation": grey}, ["a", "b", "c"])
    return root


def pixels(data, split):
    """Undo the standardisation: pixels of 0 .. 255."""
    return (split.x * data.std + data.mean) * 255


def test_arrays_equal_what_was_written(data_dir):
    data = load("cifar10", data_dir)
    for split, (images, labels) in ((data.train, TRAIN), (data.test, TEST)):
        assert (split.x.dtype, split.y.dtype, split.ids.dtype) == (
            np.float32,
            np.int64,
            np.int64,
        )
        np.testing.assert_allclose(
            split.x, (images / 255 - PUBLISHED[0]) / PUBLISHED[1], atol=2e-6
        )
        np.testing.assert_array_equal(split.y, labels)
        # The training images are in three files.
        np.testing.assert_array_equal(split.ids, np.arange(len(labels)))
    assert data.class_names == tuple(NAMES)
    assert (data.name, data.input_shape, data.num_classes) == ("cifar10", (8, 8, 3), 4)


@pytest.mark.parametrize(
    "classes", [["ship", "airplane"], [3, 0], ["3", "0"], ["ship", np.int64(0)]]
)
def test_classes_are_numbered_in_the_order_given(data_dir, classes):
    data = load("cifar10", data_dir, classes)
    images, labels = TRAIN
    wanted = np.flatnonzero((labels == 3) | (labels == 0))
    assert data.class_names == ("ship", "airplane")
    np.testing.assert_array_equal(data.train.ids, wanted)
    np.testing.assert_array_equal(data.train.y, np.where(labels[wanted] == 3, 0, 1))
    np.testing.assert_allclose(pixels(data, data.train), images[wanted], atol=1e-3)


def test_alias_and_numeric_names(data_dir):
    data = load("svhn", data_dir, ["2", 0])
    assert (data.name, data.class_names) == ("svhn_cropped", ("2", "0"))
    np.testing.assert_array_equal(data.mean, PUBLISHED[0])
    assert sorted(data.test.ids) == np.flatnonzero(np.isin(TEST[1], (0, 2))).tolist()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["ship", "dog"], "no class 'dog'.*airplane, automobile, bird, ship"),
        ([4], "no class 4"),
        ([-1], "no class -1"),
        ([1.5], "no class 1.5"),
        (["ship", "bird", 3], r"'ship' \(label 3\) is chosen twice"),
        ([], "no class chosen"),
    ],
)
def test_bad_classes(data_dir, classes, message):
    with pytest.raises(DatasetError, match=message):
        load("cifar10", data_dir, classes)


def test_class_without_images(tmp_path):
    names = ["a", "b", "c", "d"]
    write_set(
        tmp_path,
        "part",
        {
            "train": (TRAIN[0][:20], np.arange(20) % 2 * 2),
            "test": (TEST[0], TEST[1] // 2 * 2),
        },
        names,
    )
    assert load("part", tmp_path).class_names == ("a", "c")
    with pytest.raises(
        DatasetError,
        match=r"class 'b' \(label 1\) has no images in split 'train'.*chosen classes with images there: a$",
    ):
        load("part", tmp_path, ["a", "b"])
    write_set(
        tmp_path, "halves", {"train": TRAIN, "test": (TEST[0], TEST[1] // 2)}, names
    )
    with pytest.raises(
        DatasetError,
        match=r"class 'c' \(label 2\) has no images in split 'test'.*chosen classes with images there: a, b$",
    ):
        load("halves", tmp_path)
    assert load("halves", tmp_path, [1, 0]).class_names == ("b", "a")


def test_other_sets_have_their_own_statistics_of_the_chosen_classes(data_dir):
    images = random_images(30, channels=1)[np.isin(np.arange(30) % 3, (0, 2))] / 255
    for augment in ("none", "frozen"):
        data = load("grey", data_dir, ["a", "c"], augment=augment)
        np.testing.assert_allclose(data.mean, [images.mean()], rtol=1e-12)
        np.testing.assert_allclose(data.std, [images.std()], rtol=1e-12)
        np.testing.assert_allclose(
            data.test.x, (images - images.mean()) / images.std(), atol=2e-6
        )


def test_digits():
    data, digits = load("digits"), load_digits()
    assert (data.input_shape, data.class_names) == ((8, 8, 1), tuple("0123456789"))
    ids = np.concatenate([data.train.ids, data.test.ids])
    np.testing.assert_array_equal(np.sort(ids), np.arange(1797))
    x, y = (
        np.concatenate([data.train.x, data.test.x]),
        np.concatenate([data.train.y, data.test.y]),
    )
    np.testing.assert_allclose(
        (x * data.std + data.mean)[..., 0], digits.images[ids] / 16, atol=1e-6
    )
    np.testing.assert_array_equal(y, digits.target[ids])
    np.testing.assert_allclose(
        [data.train.x.mean(), data.train.x.std()], [0, 1], atol=1e-5
    )
    np.testing.assert_allclose(
        np.bincount(data.test.y) / np.bincount(y), 0.25, atol=0.005
    )
    some = load("digits", classes=[7, "3"], image_size=16)
    assert some.input_shape == (16, 16, 1)
    assert (digits.target[some.test.ids] == np.array([7, 3])[some.test.y]).all()


def test_digits_need_no_tfds():
    with mock.patch.dict(sys.modules):
        for name in list(sys.modules):  # As if these modules had not been imported yet.
            if name.partition(".")[0] in ("train", "tensorflow_datasets"):
                del sys.modules[name]
        assert (
            importlib.import_module("train.common.data").load("digits").num_classes
            == 10
        )
        assert "tensorflow_datasets" not in sys.modules


def candidates(image, padding=4):
    """Yield every crop of a padded image, plain and flipped, with its (row, column, is flipped)."""
    height, width, channels = image.shape
    padded = np.zeros(
        (height + 2 * padding, width + 2 * padding, channels), image.dtype
    )
    padded[padding : padding + height, padding : padding + width] = image
    for row in range(2 * padding + 1):
        for column in range(2 * padding + 1):
            crop = padded[row : row + height, column : column + width]
            yield (row, column, False), crop
            yield (row, column, True), crop[:, ::-1]


def test_augmentation_equals_a_loop():
    images = random_images(50, size=(5, 7), channels=2)
    made = crop_and_flip(images, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    corners, flips = rng.integers(0, 9, (50, 2)), rng.random(50) < 0.5
    for image, (row, column), flip, ours in zip(
        images, corners, flips, made, strict=True
    ):
        np.testing.assert_array_equal(
            ours, dict(candidates(image))[(row, column, bool(flip))]
        )


def found(data, split, images):
    """Find from which crop of its original image each example of a split was made."""
    places = []
    for made, at in zip(np.rint(pixels(data, split)), split.ids, strict=True):
        matches = [
            place
            for place, crop in candidates(images[at])
            if np.array_equal(crop, made)
        ]
        assert matches, f"example {at} is no crop of its image"
        places.append(matches[0])
    return np.array(places)


def test_frozen_augmentation_crops_and_flips_before_standardisation(data_dir):
    plain, data = (
        load("cifar10", data_dir),
        load("cifar10", data_dir, augment="frozen", seed=5),
    )
    places = found(data, data.train, TRAIN[0])
    assert places[:, :2].min() == 0
    assert places[:, :2].max() == 8
    assert 15 < places[:, 2].sum() < 45
    np.testing.assert_array_equal(data.test.x, plain.test.x)


def test_seed(data_dir):
    draws = [
        load("cifar10", data_dir, augment="frozen", test_images="train", seed=seed)
        for seed in (7, 7, 8)
    ]
    for split in ("train", "test"):
        first, same, other = (getattr(draw, split).x for draw in draws)
        np.testing.assert_array_equal(first, same)
        assert not np.array_equal(first, other)
    assert not np.array_equal(draws[0].test.ids, draws[2].test.ids)


def test_test_images_from_the_training_images(data_dir):
    plain = load("cifar10", data_dir, ["ship", "bird"], test_images="train", seed=2)
    np.testing.assert_array_equal(np.bincount(plain.test.y), [3, 3])  # A fifth of 15.
    where = np.searchsorted(plain.train.ids, plain.test.ids)
    np.testing.assert_array_equal(plain.test.x, plain.train.x[where])
    np.testing.assert_array_equal(plain.test.y, plain.train.y[where])
    frozen = load(
        "cifar10",
        data_dir,
        ["ship", "bird"],
        augment="frozen",
        test_images="train",
        seed=2,
    )
    np.testing.assert_array_equal(frozen.test.ids, plain.test.ids)
    drawn_anew = found(frozen, frozen.test, TRAIN[0])
    assert (drawn_anew != found(frozen, frozen.train, TRAIN[0])[where]).any(
        axis=1
    ).sum() >= 5


def test_fifth():
    labels = np.repeat([0, 1, 2], [5000, 4002, 500])
    drawn = draw_fifth(labels, np.random.default_rng(0))
    # The numbers of test images in the published experiments.
    np.testing.assert_array_equal(np.bincount(labels[drawn]), [1000, 800, 100])
    assert len(set(drawn)) == 1900
    with pytest.raises(
        DatasetError, match=r"class 1 has 4 training images, but .* needs at least 5"
    ):
        draw_fifth(np.repeat([0, 1], [9, 4]), np.random.default_rng(0))


def test_fingerprint(data_dir, tmp_path):
    first = load("cifar10", data_dir).fingerprint
    assert first == load("cifar10", data_dir, augment="frozen", seed=9).fingerprint
    assert len(bytes.fromhex(first)) == 32
    leaked = [
        load("cifar10", data_dir, test_images="train", seed=seed, augment=a)
        for seed, a in ((0, "none"), (1, "frozen"))
    ]
    assert leaked[0].fingerprint == leaked[1].fingerprint
    prints = {
        first,
        load("cifar10", data_dir, [0, 1]).fingerprint,
        load("cifar10", data_dir, [1, 0]).fingerprint,
    }
    images, labels = TRAIN
    pixel, swapped = images.copy(), np.r_[1, 0, 2:60]
    pixel[17, 3, 4, 1] ^= 1
    changed = {
        "pixel": (pixel, labels),
        "order": (images[swapped], labels[swapped]),
        "label": (images, labels[swapped]),
    }
    for name, train in changed.items():
        write_set(tmp_path / name, "cifar10", {"train": train, "test": TEST}, NAMES)
        prints.add(load("cifar10", tmp_path / name).fingerprint)
    assert len(prints) == 6


@pytest.mark.parametrize("option", ["augment", "test_images"])
def test_an_option_that_does_not_exist_is_no_other_one(option):
    with pytest.raises(KeyError, match="random"):
        load("digits", **{option: "random"})


def test_errors_are_of_the_house():
    assert issubclass(DatasetError, SRelError)
    assert issubclass(DatasetError, ValueError)
