"""The published augmentation, drawn once, and the published choice of "test" images. NumPy only."""

import numpy as np

from train.common.image_sets import DatasetError


def crop_and_flip(images, rng, padding=4):
    """Random crop of the image's own size from the image padded with zeros, then a horizontal flip of every other
    image or so: torchvision's RandomCrop(size, padding) and RandomHorizontalFlip, one draw an image.

    images [N, H, W, C] of any type, before standardisation; rng a NumPy Generator, from which rows and columns [N, 2]
    and then the flips [N] are drawn. Returns a new array like `images`.
    """
    count, height, width, _ = images.shape
    row, column = rng.integers(0, 2 * padding + 1, size=(count, 2)).T
    flipped = rng.random(count) < 0.5
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, (height, width), axis=(1, 2)
    )
    crops = np.moveaxis(
        windows[np.arange(count), row, column], 1, -1
    )  # from [N, C, H, W]
    return np.where(flipped[:, None, None, None], crops[:, :, ::-1], crops)


def draw_fifth(labels, rng):
    """Positions of a fifth (rounded down) of each class, drawn without replacement, in ascending order.

    labels int [N]; rng a NumPy Generator. Raises DatasetError for a class of fewer than 5.
    """
    drawn = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if members.size < 5:
            raise DatasetError(
                f"class {label} has {members.size} training images, too few to draw a fifth for testing"
            )
        drawn.append(rng.choice(members, members.size // 5, replace=False))
    return np.sort(np.concatenate(drawn))
