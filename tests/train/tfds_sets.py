"""Small image sets written in the layout of TFDS, and folders of images."""

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds


def random_images(count, size=(8, 8), channels=3, seed=0):
    """Draw images of independent uniform pixels, uint8 [count, H, W, C]."""
    return np.random.default_rng(seed).integers(
        0, 256, (count, *size, channels), dtype=np.uint8
    )


def write_set(
    data_dir,
    name,
    splits,
    names,
    image=None,
    version="1.0.0",
    shard=1000,
    supervised_keys=None,
    **more,
):
    """Write `{split: (images, labels)}` as a prepared TFDS set and return its directory.

    image    the Image feature; None means uint8 of the size of the first image. Images may be encoded (bytes) already.
    shard    largest number of examples in a file
    more     {key: (feature, value)} of further features; all examples have the same value
    """
    first = next(iter(splits.values()))[0][0]
    features = {
        "image": image or tfds.features.Image(shape=first.shape),
        "label": tfds.features.ClassLabel(names=names),
        **{key: feature for key, (feature, _) in more.items()},
    }
    place = data_dir / name / version
    place.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name, tfds.core.Version(version), str(place), "tests"
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=supervised_keys,
    )
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=shard)
    writer.initialize_splits(list(splits))
    values = {key: value for key, (_, value) in more.items()}
    for split, (images, labels) in splits.items():
        examples = [
            {"image": i, "label": label, **values}
            for i, label in zip(images, labels, strict=True)
        ]
        writer.add_examples({split: examples})
    writer.close_all()
    return place


def write_folder(root, splits):
    """Write `{split: {class: images}}` as root/split/class/000.png, ..."""
    for split, classes in splits.items():
        for name, images in classes.items():
            (root / split / name).mkdir(parents=True)
            for number, image in enumerate(images):
                tf.io.write_file(
                    str(root / split / name / f"{number:03}.png"),
                    tf.io.encode_png(image),
                )
