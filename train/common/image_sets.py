"""Image sets: scikit-learn's digits, any image classification set of TFDS, or a folder of images.

Each set has the attributes `name`, `where`, `splits` and `class_names` (all classes, in the order of the set's labels).
The method `read(split, keep, image_size)` of a set decodes only the images whose label is in `keep`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from srel_tf.errors import SRelError

ALIASES = {"svhn": "svhn_cropped"}

# (height, width) to which images are resized; None keeps the stored size.
Size = tuple[int, int] | None


class DatasetError(SRelError, ValueError):
    """An image set cannot be found, read or used."""


class Examples(NamedTuple):
    """Examples of a split, in the order of the data set and before standardisation.

    Attributes:
        images: [N, H, W, C]. Integers use the full range of their type; floats are intensities in [0, 1].
        labels: int64 [N], the labels that the image set uses.
        ids: int64 [N], positions in the split (`Digits`: in the whole set).
    """

    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray


def open_set(
    name: str, data_dir: str | Path | None = None, download: bool = True
) -> "ImageSet":
    """Open an image set. `name` is `digits`, `folder:DIR` or the name of a TFDS set (see `data.load`)."""
    if name == "digits":
        return Digits()
    if name.startswith("folder:"):
        return _open_folder(name)
    return _open_tfds(ALIASES.get(name, name), data_dir, download)


class Digits:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 x 1, intensities in [0, 1].

    scikit-learn has no training and test split of this set. Here every fourth image of each class, in the order of the
    set, is a test image. `ids` are positions in the whole set.
    """

    name = "digits"
    where = "scikit-learn"
    class_names = tuple("0123456789")
    splits = ("train", "test")

    def read(
        self, split: str, keep: Sequence[int] | None = None, image_size: Size = None
    ) -> Examples:
        from sklearn.datasets import load_digits

        digits = load_digits()
        labels = digits.target.astype(np.int64)
        rank = np.empty_like(labels)  # Position of each example within its class.
        for label in range(len(self.class_names)):
            members = np.flatnonzero(labels == label)
            rank[members] = np.arange(members.size)
        wanted = (rank % 4 == 3) == (split == "test")
        if keep is not None:
            wanted &= np.isin(labels, keep)
        images = (digits.images[wanted] / 16).astype(np.float32)[..., None]
        if image_size is not None:
            images = _resize(images, image_size).numpy()
        return Examples(images, labels[wanted], np.flatnonzero(wanted))


@dataclass(frozen=True)
class TFDSImages:
    """A prepared TFDS set with one image and one class label per example."""

    name: str
    where: str
    builder: Any = field(repr=False)
    image_key: str
    label_key: str

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.builder.info.features[self.label_key].names)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.builder.info.splits)

    def read(
        self, split: str, keep: Sequence[int] | None = None, image_size: Size = None
    ) -> Examples:
        """Read the examples whose label is in `keep`; None means all examples.

        Examples with invalid labels are read, too, so that the caller can report them.
        """
        import tensorflow as tf

        image_feature = self.builder.info.features[self.image_key]
        num_classes = len(self.class_names)

        def wanted(_: Any, record: dict[str, Any]) -> Any:
            label = record[self.label_key]
            return (
                tf.reduce_any(label == tf.constant(keep, tf.int64))
                | (label < 0)
                | (label >= num_classes)
            )

        def decode(position: Any, record: dict[str, Any]) -> tuple[Any, ...]:
            image = image_feature.decode_example(record[self.image_key])
            return (
                image if image_size is None else _resize(image, image_size),
                record[self.label_key],
                position,
            )

        records = self._records(split).enumerate()
        if keep is not None:
            records = records.filter(wanted)  # Filter before images are decoded.
        examples = records.map(
            decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        # If images may have different sizes, use batches of one image, so that the sizes can be reported below.
        same_size = image_size is not None or None not in image_feature.shape
        batches = self._collect(
            examples.batch(512 if same_size else 1).prefetch(2), split
        )
        sizes = sorted({images.shape[1:] for images, _, _ in batches})
        if len(sizes) > 1:
            raise DatasetError(
                f"the images of split {split!r} of {self.name!r} have {len(sizes)} different sizes, among them "
                f"{sizes[0]} and {sizes[-1]}: give image_size=(height, width) to resize them"
            )
        if not batches:
            return Examples(
                np.empty((0, 1, 1, 1), np.uint8),
                np.empty(0, np.int64),
                np.empty(0, np.int64),
            )
        return Examples(
            *(np.concatenate(parts) for parts in zip(*batches, strict=True))
        )

    def _records(self, split: str) -> Any:
        """Open a split in the order of its files. Images stay encoded; unused features are skipped if possible."""
        import tensorflow_datasets as tfds

        decoders = {self.image_key: tfds.decode.SkipDecoding()}
        # ImageFolder does not support partial decoding.
        if not isinstance(self.builder, tfds.ImageFolder):
            decoders = tfds.decode.PartialDecoding(
                {self.image_key: True, self.label_key: True}, decoders=decoders
            )
        return self.builder.as_dataset(
            split=split,
            decoders=decoders,
            shuffle_files=False,
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )

    def _collect(self, dataset: Any, split: str) -> list[Any]:
        import tensorflow as tf

        try:
            return list(dataset.as_numpy_iterator())
        except tf.errors.OpError as error:
            raise DatasetError(
                f"split {split!r} of {self.name!r} in {self.where} cannot be read: a file is missing, truncated or "
                f"corrupt; replace the file, or prepare the TFDS set again ({_first_line(error)})"
            ) from error


ImageSet = Digits | TFDSImages


def _open_folder(name: str) -> TFDSImages:
    import tensorflow_datasets as tfds

    root = Path(name.removeprefix("folder:")).expanduser()
    layout = f"expected {root}/train/CLASS/*.png and {root}/test/CLASS/*.png (or .jpg, .jpeg)"
    if not root.is_dir():
        raise DatasetError(f"{name!r}: there is no directory {root}; {layout}")
    builder = tfds.ImageFolder(str(root))
    counts = {split: info.num_examples for split, info in builder.info.splits.items()}
    if not counts.get("train"):
        raise DatasetError(
            f"{name!r}: no training images (images found: {counts}); {layout}"
        )
    return TFDSImages(name, str(root), builder, "image", "label")


def _open_tfds(name: str, data_dir: str | Path | None, download: bool) -> TFDSImages:
    import tensorflow_datasets as tfds

    data_dir = None if data_dir is None else str(Path(data_dir).expanduser())
    looked_in = data_dir or "the default directory of TFDS"
    try:
        # With a version pattern, TFDS looks first for prepared files, then for the code that prepares the set.
        builder = tfds.builder(
            name if ":" in name else f"{name}:*.*.*", data_dir=data_dir
        )
    except tfds.core.DatasetNotFoundError:
        raise DatasetError(
            f"{name!r} is neither prepared in {looked_in} nor a set that TFDS knows "
            "(https://www.tensorflow.org/datasets/catalog/overview#image_classification); "
            "other choices are 'digits' and 'folder:DIR'"
        ) from None
    except Exception as error:  # TFDS raises parser, file and value errors.
        raise DatasetError(
            f"the TFDS set {name!r} in {looked_in} cannot be opened: {_first_line(error)}"
        ) from error
    if not builder.is_prepared():
        _prepare(builder, name, download)
    image_key, label_key = _image_and_label(builder.info, name)
    return TFDSImages(name, str(builder.data_path), builder, image_key, label_key)


def _prepare(builder: Any, name: str, download: bool) -> None:
    place = builder.data_path
    root = str(place).split(f"/{builder.name}/")[0]
    command = (
        f"python -c \"import tensorflow_datasets as tfds; tfds.builder('{name}', data_dir='{root}')"
        '.download_and_prepare()"'
    )
    advice = f"To prepare it, run with a network connection: {command}"
    if not download:
        raise DatasetError(
            f"the TFDS set {name!r} is not prepared in {place}, and download is off. {advice}"
        )
    try:
        builder.download_and_prepare()
    except Exception as error:
        # The cause may be the network, server, disk, a checksum, a manual download or a missing package.
        raise DatasetError(
            f"the TFDS set {name!r} is not prepared in {place}, and its download failed "
            f"({type(error).__name__}: {_first_line(error)}). {advice}; or copy a prepared set to {place}"
        ) from error


def _image_and_label(info: Any, name: str) -> tuple[str, str]:
    """Return the feature keys of image and label.

    They are the supervised pair of the set, or else its only Image feature and its only ClassLabel feature.
    """
    import tensorflow_datasets as tfds

    features = dict(info.features.items())
    keys = (
        info.supervised_keys
        if info.supervised_keys and len(info.supervised_keys) == 2
        else tuple(features)
    )
    keys = [key for key in keys if isinstance(key, str) and key in features]
    images = [key for key in keys if isinstance(features[key], tfds.features.Image)]
    labels = [
        key for key in keys if isinstance(features[key], tfds.features.ClassLabel)
    ]
    if len(images) != 1 or len(labels) != 1:
        kinds = {key: type(feature).__name__ for key, feature in features.items()}
        raise DatasetError(
            f"{name!r} is not an image classification set: it needs one Image and one ClassLabel, "
            f"as its supervised pair or as its only features of these kinds; its features are {kinds}"
        )
    return images[0], labels[0]


def _resize(image: Any, size: tuple[int, int]) -> Any:
    """Resize an image by bilinear, antialiased interpolation. The dtype of the image stays the same."""
    import tensorflow as tf

    dtype = tf.as_dtype(image.dtype)
    resized = tf.image.resize(image, size, antialias=True)
    return tf.saturate_cast(tf.round(resized), dtype) if dtype.is_integer else resized


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].split(" [Op:")[0][:300]
