"""Tests of finding and reading image sets: TFDS in its layouts, folders, and the errors of both."""

import json
import socket
from urllib.error import URLError

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.train.tfds_sets import random_images, write_folder, write_set
from train.common.data import DatasetError, load

IMAGES, LABELS = random_images(24), np.arange(24) % 3
SPLITS = {"train": (IMAGES, LABELS), "test": (IMAGES[:6], LABELS[:6])}
NAMES = ["a", "b", "c"]


@pytest.fixture
def no_network(monkeypatch):
    """Let every use of the network fail."""

    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def pixels(data, split):
    return (split.x * data.std + data.mean) * 255


def test_prepared_set_is_read_without_a_network(tmp_path, no_network):
    # The code of TFDS does not know this version.
    write_set(tmp_path, "fashion_mnist", SPLITS, NAMES, version="9.0.0")
    data = load("fashion_mnist", tmp_path)
    np.testing.assert_allclose(pixels(data, data.train), IMAGES, atol=1e-3)


def test_reduced_metadata_and_second_label(tmp_path):
    coarse = tfds.features.ClassLabel(num_classes=2)
    extra = {"coarse_label": (coarse, 1), "id": (tfds.features.Text(), "x")}
    place = write_set(
        tmp_path, "cifar100", SPLITS, NAMES, supervised_keys=("image", "label"), **extra
    )
    info = json.loads((place / "dataset_info.json").read_text())
    for split in info["splits"]:
        assert split.pop("numBytes")
    info = {
        key: info[key]
        for key in ("name", "version", "fileFormat", "splits", "supervisedKeys")
    }
    (place / "dataset_info.json").write_text(json.dumps(info))
    data = load("cifar100", tmp_path, ["c", "a"])
    np.testing.assert_array_equal(data.train.ids, np.flatnonzero(LABELS != 1))
    np.testing.assert_array_equal(
        data.train.y, np.where(LABELS[LABELS != 1] == 2, 0, 1)
    )

    write_set(tmp_path, "two_labels", SPLITS, NAMES, **extra)
    with pytest.raises(
        DatasetError,
        match=r"one Image and one ClassLabel.*'coarse_label': 'ClassLabel'",
    ):
        load("two_labels", tmp_path)


def test_splits(tmp_path):
    write_set(
        tmp_path,
        "validated",
        {"train": SPLITS["train"], "validation": SPLITS["test"]},
        NAMES,
    )
    np.testing.assert_array_equal(load("validated", tmp_path).test.y, LABELS[:6])
    write_set(
        tmp_path, "untested", {"train": SPLITS["train"], "extra": SPLITS["test"]}, NAMES
    )
    with pytest.raises(
        DatasetError,
        match="has splits train, extra; it needs train, and test or validation",
    ):
        load("untested", tmp_path)
    assert len(load("untested", tmp_path, test_images="train").test.y) == 3


def test_only_the_chosen_classes_are_decoded(tmp_path):
    encoded = [
        tfds.features.Image(shape=(8, 8, 3)).encode_example(image) for image in IMAGES
    ]
    broken = [
        b"no image" if label == 1 else code
        for code, label in zip(encoded, LABELS, strict=True)
    ]
    write_set(
        tmp_path,
        "broken",
        {"train": (broken, LABELS), "test": SPLITS["test"]},
        NAMES,
        tfds.features.Image(shape=(8, 8, 3)),
    )
    assert load("broken", tmp_path, ["a", "c"]).train.x.shape == (16, 8, 8, 3)
    with pytest.raises(
        DatasetError, match=r"split 'train' of 'broken' .*cannot be read"
    ):
        load("broken", tmp_path)


@pytest.mark.parametrize(("dtype", "full"), [(np.uint16, 65535), (np.float32, 1)])
def test_other_pixel_types(tmp_path, dtype, full):
    images = (np.random.default_rng(0).random((24, 4, 5, 1)) * full).astype(dtype)
    feature = tfds.features.Image(shape=(4, 5, 1), dtype=dtype)
    write_set(
        tmp_path,
        "deep",
        {"train": (images, LABELS), "test": (images[:3], LABELS[:3])},
        NAMES,
        feature,
    )
    data = load("deep", tmp_path)
    np.testing.assert_allclose(
        data.train.x, (images / full - data.mean) / data.std, atol=1e-5
    )
    np.testing.assert_allclose(data.mean, (images / full).mean(), rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_not_finite(tmp_path, value):
    images = np.random.default_rng(0).random((24, 4, 5, 1)).astype(np.float32)
    images[13, 2, 2, 0] = value
    feature = tfds.features.Image(shape=(4, 5, 1), dtype=np.float32)
    write_set(
        tmp_path,
        "deep",
        {"train": (images, LABELS), "test": (images[:3], LABELS[:3])},
        NAMES,
        feature,
    )
    with pytest.raises(
        DatasetError,
        match=f"example 13 of split 'train' of 'deep' .* pixel of value {value}",
    ):
        load("deep", tmp_path)
    assert (
        load("deep", tmp_path, ["a", "c"]).num_classes == 2
    )  # Example 13 has class "b".


def test_constant_channel(tmp_path):
    dark = IMAGES.copy()
    dark[..., 1] = 7
    write_set(
        tmp_path, "dark", {"train": (dark, LABELS), "test": SPLITS["test"]}, NAMES
    )
    with pytest.raises(DatasetError, match=r"channels \[1\] .* are constant"):
        load("dark", tmp_path)


@pytest.mark.parametrize("classes", [None, ["a", "b"]])
def test_label_out_of_range(tmp_path, classes):
    place = write_set(tmp_path, "odd", SPLITS, NAMES)
    (place / "label.labels.txt").write_text("a\nb\n")
    features = (place / "features.json").read_text()
    (place / "features.json").write_text(
        features.replace('"numClasses": "3"', '"numClasses": "2"')
    )
    with pytest.raises(
        DatasetError,
        match=r"example 2 of split 'train' .* has label 2, out of range 0 .. 1",
    ):
        load("odd", tmp_path, classes)


def damage(file, how):
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    else:
        file.write_bytes(content[:200] + bytes([content[200] ^ 255]) + content[201:])


@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "corrupt"])
@pytest.mark.parametrize("classes", [None, ["a"]])
def test_damaged_records(tmp_path, how, classes):
    place = write_set(tmp_path, "hurt", SPLITS, NAMES, shard=8)
    damage(sorted(place.glob("*train*"))[1], how)
    with pytest.raises(
        DatasetError,
        match=f"split 'train' of 'hurt' in {place} cannot be read: .*missing, truncated or corrupt; replace",
    ):
        load("hurt", tmp_path, classes)


def test_damaged_metadata(tmp_path):
    place = write_set(tmp_path, "hurt", SPLITS, NAMES)
    (place / "dataset_info.json").write_text("{")
    with pytest.raises(DatasetError, match=f"'hurt' in {tmp_path} cannot be opened"):
        load("hurt", tmp_path)


def test_not_prepared_and_no_download(tmp_path, no_network):
    with pytest.raises(DatasetError) as error:
        load("svhn", tmp_path, download=False)
    assert f"'svhn_cropped' is not prepared in {tmp_path}/svhn_cropped/" in str(
        error.value
    )
    assert (
        f"tfds.builder('svhn_cropped', data_dir='{tmp_path}').download_and_prepare()"
        in str(error.value)
    )


def test_not_prepared_and_no_network(tmp_path, monkeypatch):
    def refused(builder):
        raise URLError("connection refused")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refused)
    with pytest.raises(
        DatasetError,
        match=r"not prepared in .*download failed \(URLError.*refused.*To prepare it, run",
    ):
        load("cifar10", tmp_path)


def test_unknown_set(tmp_path, no_network):
    with pytest.raises(
        DatasetError,
        match=f"'no_such_set' is neither prepared in {tmp_path} nor a set that TFDS knows",
    ):
        load("no_such_set", tmp_path)


def test_folder(tmp_path):
    by_class = {"dog": IMAGES[:10], "10": IMAGES[10:16], "2": IMAGES[16:]}
    write_folder(
        tmp_path,
        {
            "train": by_class,
            "test": {name: images[:2] for name, images in by_class.items()},
        },
    )
    data = load(f"folder:{tmp_path}", classes=["dog", "2"])
    assert data.class_names == ("dog", "2")  # "2" is a class name here, not a label.
    for label, name in enumerate(data.class_names):
        ours = np.rint(pixels(data, data.train)[data.train.y == label]).astype(np.uint8)
        assert sorted(image.tobytes() for image in ours) == sorted(
            image.tobytes() for image in by_class[name]
        )
    assert len(data.test.y) == 4
    whole = load(f"folder:{tmp_path}")
    assert whole.class_names == ("10", "2", "dog")
    places = np.searchsorted(whole.train.ids, data.train.ids)
    np.testing.assert_allclose(
        pixels(whole, whole.train)[places], pixels(data, data.train), atol=1e-3
    )


def test_images_of_different_sizes(tmp_path):
    colour = np.uint8([10, 200, 30])
    plain = [np.broadcast_to(colour, (height, 9, 3)) for height in (6, 7, 12)]
    write_folder(
        tmp_path,
        {split: {"plain": plain, "noise": IMAGES[:3]} for split in ("train", "test")},
    )
    with pytest.raises(
        DatasetError,
        match=r"different sizes, among them \(6, 9, 3\) and \(12, 9, 3\): give image_size",
    ):
        load(f"folder:{tmp_path}")
    data = load(f"folder:{tmp_path}", image_size=(8, 8))
    shown = pixels(data, data.train)
    np.testing.assert_allclose(
        shown[data.train.y == 1], np.broadcast_to(colour, (3, 8, 8, 3)), atol=1e-3
    )
    # Images of 8 x 8 are not changed.
    noise = np.rint(shown[data.train.y == 0]).astype(np.uint8)
    assert sorted(image.tobytes() for image in noise) == sorted(
        image.tobytes() for image in IMAGES[:3]
    )
    assert load(f"folder:{tmp_path}", image_size=5).input_shape == (5, 5, 3)


def test_training_and_test_images_of_different_sizes(tmp_path):
    write_folder(tmp_path, {"train": {"x": IMAGES[:3]}, "test": {"x": IMAGES[:3, :6]}})
    with pytest.raises(DatasetError, match=r"different sizes.*give image_size"):
        load(f"folder:{tmp_path}")


def test_folder_layout(tmp_path):
    with pytest.raises(
        DatasetError,
        match=f"no directory {tmp_path}/none; expected {tmp_path}/none/train/CLASS/",
    ):
        load(f"folder:{tmp_path}/none")
    (tmp_path / "train" / "empty").mkdir(parents=True)
    with pytest.raises(
        DatasetError, match=f"no training images.*expected {tmp_path}/train/CLASS/"
    ):
        load(f"folder:{tmp_path}")
    write_folder(tmp_path, {"train": {"x": IMAGES[:3]}})
    with pytest.raises(DatasetError, match="it needs train, and test or validation"):
        load(f"folder:{tmp_path}")
