"""Tests of the benchmark: its procedures give the right numbers, its counts and fits are right, its parts run."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import srel_tf
from tests import reference
from train.benchmark import command, comparison, growth, report, storage
from train.benchmark import training as benchmark_training
from train.benchmark.procedures import (
    LEARNING_RATE,
    NaiveLoop,
    interleaved,
    published_pair,
    setup,
)
from train.benchmark.training import overhead

SMALL = (8, 8, 3)


def measured(it, estimator, measure):
    result = srel_tf.measure(
        it.model, it.probe, measures=("kl", "l1"), estimator=estimator
    )
    assert result.valid(measure).all()
    return result.matrix(measure)


def test_the_naive_loop_is_the_definition(in_double_precision):
    it = setup("mlp", 5, SMALL)
    naive = NaiveLoop(it.model, it.x, it.y)()
    np.testing.assert_allclose(naive["kl"], measured(it, "exact", "kl"), rtol=1e-5)
    np.testing.assert_allclose(naive["l1"], measured(it, "exact", "l1"), rtol=1e-6)


def test_the_naive_loop_sees_the_weights_as_they_are_now(in_double_precision):
    it = setup("mlp", 4, SMALL)
    loop = NaiveLoop(it.model, it.x, it.y)
    before = loop()["l1"]
    it.model.layers[-1].kernel.assign(2 * it.model.layers[-1].kernel)
    after = loop()["l1"]
    assert not np.allclose(after, before, rtol=1e-3)
    np.testing.assert_allclose(after, measured(it, "exact", "l1"), rtol=1e-6)


def test_the_published_pair_is_kl_div_around_a_step_of_a_new_adam(in_double_precision):
    it = setup("mlp", 6, SMALL)
    x, y, source = it.x, it.y, 1
    stepped = reference.stepped(
        it.model, x[[source]], y[[source]], None, keras.optimizers.Adam(LEARNING_RATE)
    )

    def kl_div(points):
        """Compute torch's kl_div(input=probabilities after, target=probabilities before), mean over classes."""
        p, q = (
            np.exp(reference.log_softmax(net(points, training=False)))
            for net in (it.model, stepped)
        )
        return (p * (np.log(p) - q)).mean(axis=-1)

    value = published_pair(it.model, x, y, source, target_class=2)
    np.testing.assert_allclose(
        value, kl_div(x[y == 2]) / (kl_div(x[[source]]) + 1e-8), rtol=1e-9
    )


@pytest.mark.parametrize(
    ("name", "shape"), [("resnet18", (32, 32, 3)), ("cnn", SMALL), ("mlp", SMALL)]
)
def test_the_net_in_torch_is_the_same(name, shape):
    torch = pytest.importorskip("torch")
    from train.benchmark.torch_recipes import torch_outputs, torch_weights

    it = setup(name, 3, shape)
    outputs = torch_outputs(it.model, torch_weights(it.model), torch.tensor(it.x))
    np.testing.assert_allclose(
        outputs, it.model(it.x, training=False), rtol=1e-4, atol=1e-5
    )


def test_the_torch_recipes_give_the_same_numbers(in_double_precision):
    pytest.importorskip("torch")
    from train.benchmark.torch_recipes import recipes

    it = setup("cnn", 12, SMALL)  # More examples than CHUNK.
    forward, *exact, limit = recipes(it.model, it.x, it.y, LEARNING_RATE).values()
    p = np.exp(reference.log_softmax(forward().numpy())).astype(float)

    def srel(moved):
        """Compute S_rel of Definition 1 from the changes of the probabilities [n, n, C]."""
        lengths = np.abs(moved).sum(axis=-1)
        return lengths / np.diag(lengths)[:, None]

    assert len(exact) == 2
    for after in exact:
        moved = np.exp(reference.log_softmax(after().numpy())).astype(float) - p
        np.testing.assert_allclose(srel(moved), measured(it, "exact", "l1"), rtol=1e-6)
    delta = limit().numpy()
    moved = p * (delta - (p * delta).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(srel(moved), measured(it, "limit", "l1"), rtol=1e-9)


def test_functions_take_turns_and_each_is_called_once_before():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = interleaved(functions, {"a": 2, "b": 2, "c": 1}, each={"b": 2})
    assert "".join(calls) == "abc" + "abbc" + "abb"
    assert {name: len(t) for name, t in times.items()} == {"a": 2, "b": 4, "c": 1}


def test_ratios_of_made_up_times():
    times = {
        "forward pass": [0.1, 0.2, 9.0],
        "limit": [1.0],
        "published procedure": [0.5, 0.7],
    }
    table = comparison.ratios(times, pairs=10).set_index("procedure")
    assert table["timings"].tolist() == [3, 1, 2]
    np.testing.assert_allclose(table["seconds"], [0.2, 1.0, 6.0])
    np.testing.assert_allclose(table["forward_passes"], [1.0, 5.0, 30.0])
    np.testing.assert_allclose(table["published_over_it"], [30.0, 6.0, 1.0])


def test_overhead_of_made_up_blocks():
    table = pd.DataFrame(
        {"kind": ["no measurement"] * 3 + ["limit"], "seconds": [4.0, 5.0, 4.0, 4.2]}
    )
    found = overhead(table)
    np.testing.assert_allclose(found.loc["limit", "overhead"], 0.05)
    assert found.loc["no measurement", "blocks"] == 3


@pytest.mark.parametrize("start", [0, 54, 117])
def test_measurements_fall_due_at_the_start_of_their_blocks(start):
    """Blocks are counted from the step at which the plain fit ended."""
    schedules = {
        name: benchmark_training.due(name, start) for name in ("limit", "exact")
    }
    due = {
        name: [step for step in range(64) if is_due(start + step)]
        for name, is_due in schedules.items()
    }
    # The first nine steps trace the graphs. Then blocks of nine steps repeat: without a measurement, limit, exact.
    assert due == {"limit": [0, 18, 45], "exact": [0, 27, 54]}


def test_a_block_with_a_measurement_is_the_one_it_is_called(monkeypatch):
    """The number of blocks before it is not a multiple of the number of kinds."""
    taken = []

    class Clock(benchmark_training._Blocks):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            counts = {
                p._settings.estimator: len(p.recorder.frame())
                for p in self.model._srel_callbacks
            }
            if (batch + 1) % benchmark_training.EVERY == 0:
                taken.append(counts)

    monkeypatch.setattr(benchmark_training, "_Blocks", Clock)
    table = benchmark_training.training("mlp", points=3, batch_size=2, rounds=1)
    assert table["kind"].tolist() == ["plain fit", "no measurement", "limit", "exact"]
    # Number of rows so far at the end of each block of the fit with probes; the plain fit has none.
    of_fit = [c for c in taken if c]
    rows = [
        {k: after[k] - before[k] for k in after}
        for before, after in itertools.pairwise(of_fit)
    ]
    assert [{k for k, n in block.items() if n} for block in rows] == [
        set(),
        {"limit"},
        {"exact"},
    ]


def made_up_growth():
    points = np.array([30, 60, 120])
    exact = pd.DataFrame(
        {
            "estimator": "exact",
            "points": points,
            "seconds": 2e-3 * points**2.0,
            "memory": 5e8,
        }
    )
    limit = pd.DataFrame(
        {
            "estimator": "limit",
            "points": points,
            "seconds": 3e-3 * points**1.0,
            "memory": 0.0,
        }
    )
    return pd.concat([limit, exact])


def test_exponents_of_made_up_times():
    fitted = growth.exponents(made_up_growth()).set_index(["estimator", "quantity"])
    np.testing.assert_allclose(
        fitted.loc[("exact", "seconds"), ["exponent", "factor"]].astype(float),
        [2.0, 2e-3],
    )
    np.testing.assert_allclose(
        fitted.loc[("limit", "seconds"), ["exponent", "factor"]].astype(float),
        [1.0, 3e-3],
    )
    np.testing.assert_allclose(
        fitted.loc[("exact", "memory"), "exponent"], 0.0, atol=1e-12
    )
    # The memory above the forward pass is 0, which has no logarithm.
    assert np.isnan(fitted.loc[("limit", "memory"), "exponent"])
    assert fitted.loc[("exact", "seconds"), "points"] == "30–120"


def test_the_picture_is_log_log_with_every_point_and_a_line_a_fit():
    table = made_up_growth()
    time, memory = report.plot_growth(table, growth.exponents(table)).axes
    for ax in (time, memory):
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert sum(len(points.get_offsets()) for points in time.collections) == 6
    assert [len(ax.lines) for ax in (time, memory)] == [2, 1]
    np.testing.assert_allclose(
        time.lines[1].get_ydata(), 2e-3 * np.array([30, 60, 120]) ** 2.0
    )
    assert "(s)" in time.get_ylabel()
    assert "(GB)" in memory.get_ylabel()


QUICK = "--model mlp --points 3 --repeats 1 --torch-repeats 0 --sizes 3 --exact-up-to 0 --batch-size 2 --rounds 1"


def test_the_comparison_runs_and_is_written(tmp_path, capsys):
    assert command.main([*QUICK.split(), "--out", str(tmp_path)]) == 0
    comparison = srel_tf.read_frame(tmp_path / "comparison.csv")
    procedures = {
        "forward pass",
        "limit",
        "exact",
        "auto at η = 1e-06",
        "naive loop",
        "published procedure",
    }
    assert set(comparison["procedure"]) == procedures
    assert {p.name for p in tmp_path.iterdir()} == {"comparison.csv", "comparison.json"}
    printed = capsys.readouterr().out
    assert "cores" in printed
    assert "in units of 3 forward passes: exact" in printed


@pytest.mark.slow
def test_all_parts_run_and_are_written(tmp_path):
    assert command.main([*QUICK.split(), "--all", "--out", str(tmp_path)]) == 0
    growth = srel_tf.read_frame(tmp_path / "growth.csv")
    assert growth[["estimator", "points"]].to_numpy().tolist() == [["limit", 3]]
    assert (growth["peak"] > growth["memory"]).all()
    training = srel_tf.read_frame(tmp_path / "training.csv")
    assert training.groupby("kind").size().to_dict() == dict.fromkeys(
        ["plain fit", "no measurement", "limit", "exact"], 1
    )
    assert {p.name for p in tmp_path.iterdir()} >= {
        "comparison.csv",
        "growth.png",
        "growth_exponents.csv",
        "training.json",
    }


@pytest.mark.parametrize(
    "options", ["--points 2", "--repeats 0", "--sizes 2 30", "--rounds 0"]
)
def test_bad_options_get_a_named_error(options, capsys):
    with pytest.raises(SystemExit):
        command.main(options.split())
    assert f"argument {options.split()[0]}: " in capsys.readouterr().err


def test_a_gpu_is_asked_for_where_there_is_none(monkeypatch, capsys):
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind=None: [])
    assert command.main(["--device", "gpu"]) == 1
    assert "--device gpu: TensorFlow does not find a GPU" in capsys.readouterr().err


def test_a_failed_process_is_an_error_with_its_last_words(monkeypatch):
    """A thread takes the place of the separate process and raises the same error."""
    monkeypatch.setattr(
        growth, "ProcessPoolExecutor", lambda jobs, context: ThreadPoolExecutor(jobs)
    )
    with pytest.raises(
        srel_tf.SRelError,
        match=r"limit with 30 points .* OptionError: unknown model 'vgg'",
    ):
        growth.growth("vgg", sizes=(30,))


def test_made_up_frames_are_stored_and_summarised(tmp_path, capsys):
    assert storage.main(["--rows", "1e4", "--dir", str(tmp_path / "new")]) == 0
    assert "14,400 rows" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_a_layer_without_a_counterpart_in_torch_is_refused():
    torch = pytest.importorskip("torch")
    from train.benchmark.torch_recipes import torch_outputs

    inputs = keras.Input(SMALL)
    for layer in (
        keras.layers.Conv2D(2, 3, activation="tanh"),
        keras.layers.AveragePooling2D(2),
    ):
        model = keras.Model(inputs, layer(inputs))
        with pytest.raises(srel_tf.ModelError, match=layer.name):
            torch_outputs(model, {}, torch.zeros(1, *SMALL))
