"""TensorBoard summaries, which are read back from the event files with TensorBoard's reader."""

import io

import keras
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import srel_tf
from srel_tf.fit.tensorboard import TensorBoardWriter
from tests.made_up import probe, result


def written(log_dir):
    """Read {tag: {step: tensor}} of all summaries in a directory."""
    reader = EventAccumulator(str(log_dir), size_guidance={"tensors": 0})
    reader.Reload()
    return {
        tag: {
            event.step: tf.make_ndarray(event.tensor_proto)
            for event in reader.Tensors(tag)
        }
        for tag in reader.Tags()["tensors"]
    }


def scalars_of(frame):
    """Compute the expected scalars with `smooth`."""
    found = {}
    for pair in srel_tf.smooth(frame).to_dict("records"):
        tag = f"srel_{pair['update']}_{pair['measure']}/{pair['source_class']} to {pair['target_class']}"
        found.setdefault(tag, {})[pair["step"]] = pair["mean"]
    return found


def check_scalars(tensors, frame):
    expected = scalars_of(frame)
    assert {tag for tag in tensors if "/" in tag} == set(expected)
    for tag, by_step in expected.items():
        assert set(tensors[tag]) == set(by_step)
        for step, mean in by_step.items():
            np.testing.assert_array_equal(tensors[tag][step], np.float32(mean))


@pytest.mark.usefixtures("thermometer")
def test_scalars_and_heat_maps_of_a_fit(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 4)).astype(np.float32), np.arange(8) % 2
    model = srel_tf.SRelSequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    points = srel_tf.ProbeSet(x[:4], y[:4], ["cat", "dog"])
    model.attach_probe(points, every=2, log_dir=tmp_path / "log")
    model.fit(x, y, batch_size=2, epochs=1, verbose=0)
    tensors = written(tmp_path / "log")
    check_scalars(tensors, model.srel_frame())
    images = {tag for tag in tensors if "/" not in tag}
    assert images == {"srel_sgd_kl", "srel_sgd_l1"}
    for tag in images:
        assert set(tensors[tag]) == {0, 2, 4}
        for _, _, *pictures in tensors[tag].values():  # Width, height and one PNG.
            (picture,) = pictures
            assert matplotlib.image.imread(io.BytesIO(picture)).ndim == 3


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_undefined_entries(tmp_path):
    """The scalar of a class pair without valid entries is NaN. A matrix without valid entries has no heat map."""
    made = result(probe(), step=3, invalid=0.4)
    made.matrices["l1"] = made.matrices["l1"]._replace(
        valid=np.zeros((4, 4), bool), srel=np.full((4, 4), np.nan)
    )
    TensorBoardWriter(tmp_path)(made)
    tensors = written(tmp_path)
    check_scalars(tensors, made.to_frame())
    assert np.isnan(tensors["srel_sgd_l1/cat to cat"][3])
    assert "srel_sgd_kl" in tensors
    assert "srel_sgd_l1" not in tensors


def test_summaries_of_several_probes_stay_apart(tmp_path):
    named = probe().with_name("η=0.5")
    results = [
        result(probe(), 0, ["l1"]),
        result(named, 1, ["l1"]),
        result(probe(), 2, ["l1"], estimator="limit"),
        result(probe(), 3, ["l1"], update="optimizer"),
    ]
    for made in results:
        TensorBoardWriter(tmp_path)(made)
    steps = {
        tag: list(by_step)
        for tag, by_step in written(tmp_path).items()
        if "/" not in tag
    }
    assert steps == {
        "srel_sgd_l1": [0],
        "srel_η=0.5_sgd_l1": [1],
        "srel_sgd_limit_l1": [2],
        "srel_optimizer_l1": [3],
    }


def test_a_disk_that_is_full_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    writer = TensorBoardWriter(tmp_path)
    monkeypatch.setattr(tf.summary, "scalar", full)
    with pytest.raises(
        srel_tf.StorageError,
        match=f"summaries to {tmp_path}: No space left on device; free space",
    ):
        writer(result(probe()))
