"""The recorder keeps rows in order, each with its position in the training."""

import numpy as np

from srel_tf.fit.clock import Epoch, Place
from srel_tf.fit.recorder import Recorder
from srel_tf.frames.schema import COLUMNS
from tests.made_up import probe, result

PROBE = probe()


def epochs_of(recorder):
    return (
        recorder.frame()
        .groupby("step", sort=False)["epoch"]
        .unique()
        .map(list)
        .to_dict()
    )


def test_nothing_measured_yet():
    recorder = Recorder("run", 0)
    assert list(recorder.frame().columns) == list(COLUMNS)
    assert len(recorder.frame()) == 0


def test_rows_are_kept_in_order_with_run_and_seed():
    recorder = Recorder("a run", 7)
    results = [result(PROBE, step) for step in (0, 3, 6)]
    for r in results:
        recorder.add(r, Place(0, r.step, Epoch(10)))
    frame = recorder.frame()
    assert (
        frame["step"].tolist() == np.repeat([0, 3, 6], 2 * 16).tolist()
    )  # 2 measures with 4 x 4 pairs.
    assert (frame["run"] == "a run").all()
    assert (frame["seed"] == 7).all()
    first = frame[(frame["step"] == 3) & (frame["measure"] == "l1")]
    np.testing.assert_array_equal(
        first["srel"].to_numpy().reshape(4, 4), results[1].matrix("l1")
    )


def test_epoch_is_a_fraction_where_the_length_is_known():
    recorder = Recorder("", None)
    for step, (epochs, batches) in {
        0: (0, 0),
        3: (0, 3),
        8: (0, 8),
        10: (1, 2),
    }.items():
        recorder.add(result(PROBE, step), Place(epochs, batches, Epoch(8)))
    assert epochs_of(recorder) == {0: [0.0], 3: [0.375], 8: [1.0], 10: [1.25]}
    assert recorder.frame()["seed"].isna().all()


def test_epoch_waits_for_the_length_of_its_epoch():
    recorder, first, second = Recorder("", None), Epoch(), Epoch()
    recorder.add(result(PROBE, 0), Place(0, 0, first))
    recorder.add(result(PROBE, 2), Place(0, 2, first))
    assert epochs_of(recorder)[0] == [0.0]
    early = recorder.frame()
    assert early["epoch"].isna().tolist() == [False] * 32 + [True] * 32
    first.length = 5
    recorder.add(result(PROBE, 6), Place(1, 1, second))
    second.length = 4  # The second epoch is shorter.
    assert epochs_of(recorder) == {0: [0.0], 2: [0.4], 6: [1.25]}
    assert early["epoch"].isna().sum() == 32  # A returned frame does not change later.


def test_what_was_saved_is_forgotten_once():
    """A second `forget` of the same step drops nothing: after going back, steps up to it have new results."""
    recorder, epoch = Recorder("", None), Epoch(6)
    for step in (1, 2, 3):
        recorder.add(result(PROBE, step), Place(0, step, epoch))
    recorder.forget(None)
    assert recorder.frame()["step"].unique().tolist() == [1, 2, 3]
    for _ in range(2):
        recorder.forget(2)
        assert epochs_of(recorder) == {3: [0.5]}
    assert (recorder.stored_step, recorder.first_step, recorder.last_step) == (2, 3, 3)
    recorder.withdraw(1)
    recorder.add(result(PROBE, 1), Place(0, 1, epoch))
    recorder.forget(2)
    assert recorder.frame()["step"].unique().tolist() == [1]
    assert recorder.name != Recorder("", None).name


def test_results_of_later_steps_are_withdrawn():
    recorder = Recorder("", None)
    nothing = (recorder.first_step, recorder.last_step, recorder.newest)
    assert nothing == (None, None, None)
    for step in range(4):
        recorder.add(result(PROBE, step), Place(0, step, Epoch(8)))
    recorder.withdraw(3)
    assert epochs_of(recorder) == {0: [0.0], 1: [0.125], 2: [0.25]}
    assert (recorder.first_step, recorder.last_step, recorder.newest.step) == (0, 2, 2)


def test_results_that_are_held_are_out_of_the_frame_until_they_are_released():
    recorder = Recorder("", None)
    for step in range(3):
        recorder.add(result(PROBE, step), Place(0, step, Epoch(8)))
    recorder.hold(2)
    assert epochs_of(recorder) == {0: [0.0], 1: [0.125]}
    recorder.forget(recorder.last_step)  # A store has the results before the held one.
    recorder.release()
    assert epochs_of(recorder) == {2: [0.25]}
    assert (recorder.stored_step, recorder.first_step, recorder.last_step) == (1, 2, 2)
    recorder.hold(2)
    recorder.withdraw(0)
    recorder.release()
    assert (recorder.last_step, recorder.newest) == (1, None)
