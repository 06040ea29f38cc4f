"""Tests of the order of the data: it depends only on seed and epoch, and a resumed run continues in its middle."""

import itertools

import numpy as np

from train.classification.experiment import batches, order
from train.common.data import Split

SPLIT = Split(np.arange(23, dtype="float32")[:, None], np.arange(23), np.arange(23))


def first(count, **kwargs):
    taken = itertools.islice(batches(SPLIT, 5, seed=3, **kwargs), count)
    return [(x.numpy().ravel().tolist(), y.numpy().tolist()) for x, y in taken]


def test_each_epoch_has_whole_batches_of_another_order():
    all_y = [y for _, y in first(12)]  # 4 batches an epoch, 3 examples left out
    for epoch in range(3):
        seen = np.concatenate(all_y[4 * epoch : 4 * epoch + 4]).tolist()
        assert seen == order(23, 3, epoch)[:20].tolist()
        assert len(set(seen)) == 20
    assert all_y[:4] != all_y[4:8] != all_y[8:]
    assert all(x == y for x, y in first(12))


def test_it_can_be_entered_anywhere():
    whole = first(12)
    for epoch, skip in itertools.product(range(3), range(4)):
        at = 4 * epoch + skip
        assert first(12 - at, epoch=epoch, skip=skip) == whole[at:]


def test_seeds_differ():
    assert (
        order(23, 3, 0).tolist() != order(23, 4, 0).tolist() != order(23, 3, 1).tolist()
    )
