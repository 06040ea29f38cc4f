"""Tests of the nets of the experiments: shapes, padding and initialisation, compared with NumPy."""

import keras
import numpy as np
import pytest

import srel_tf
from srel_tf.errors import OptionError
from train.models import build_model

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def resnet18():
    keras.utils.set_random_seed(0)
    return build_model("resnet18", (32, 32, 3), 3)


def convolution(x, kernel, stride):
    """Compute PyTorch's Conv2d(stride, padding=size // 2, bias=False) of x [N, H, W, C], kernel [k, k, C, F]."""
    size = kernel.shape[0]
    margin = (size // 2, size // 2)
    padded = np.pad(x.astype(np.float64), ((0, 0), margin, margin, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, (size, size), axis=(1, 2)
    )[:, ::stride, ::stride]
    return np.einsum(
        "nhwcij,ijcf->nhwf", windows, kernel.astype(np.float64), optimize=True
    )


def max_pool(x):
    """Compute PyTorch's MaxPool2d(3, stride=2, padding=1)."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[
        :, ::2, ::2
    ]
    return windows.max(axis=(-2, -1))


def relu(x):
    return np.maximum(x, 0)


def kernels(model):
    """List (kernel, stride) of the convolutions, in the order of the layers."""
    return [
        (layer.kernel.numpy(), layer.strides[0])
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D)
    ]


def forward(model, x, pool=True):
    """Compute the published net in NumPy: stem, two basic blocks in each stage, global average, dense layer."""
    rest = iter(kernels(model))
    x = relu(convolution(x, *next(rest)))
    x = max_pool(x) if pool else x
    for block in range(8):
        first, second = next(rest), next(rest)
        # The first block of each stage but the first halves the image.
        shortcut = convolution(x, *next(rest)) if block in (2, 4, 6) else x
        x = relu(convolution(relu(convolution(x, *first)), *second) + shortcut)
    dense = model.layers[-1]
    return x.mean(axis=(1, 2)) @ dense.kernel.numpy() + dense.bias.numpy()


def test_size_of_the_published_net(resnet18):
    assert resnet18.count_params() == 11_168_451
    assert isinstance(resnet18, srel_tf.SRelModel)
    assert not resnet18.non_trainable_variables
    assert [v.path for v in resnet18.variables if "bias" in v.path] == [
        resnet18.layers[-1].bias.path
    ]


def test_resnet18_equals_the_net_written_out_with_symmetric_padding(resnet18):
    x = RNG.normal(size=(2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(
        resnet18(x).numpy(), forward(resnet18, x), rtol=1e-4, atol=1e-5
    )


def test_resnet18_cifar_keeps_the_image_size_in_its_stem():
    model = build_model("resnet18_cifar", (16, 16, 3), 3)
    x = RNG.normal(size=(1, 16, 16, 3)).astype(np.float32)
    np.testing.assert_allclose(
        model(x).numpy(), forward(model, x, pool=False), rtol=1e-4, atol=1e-5
    )
    assert next(kernel.shape for kernel, _ in kernels(model)) == (3, 3, 3, 64)


def test_spatial_sizes(resnet18):
    kinds = (keras.layers.Conv2D, keras.layers.MaxPooling2D)
    sizes = [
        layer.output.shape[1:3] for layer in resnet18.layers if isinstance(layer, kinds)
    ]
    # Stem, pool and 4 convolutions; then stages of 4 convolutions and a shortcut.
    assert (
        sizes == [(16, 16)] + [(8, 8)] * 5 + [(4, 4)] * 5 + [(2, 2)] * 5 + [(1, 1)] * 5
    )
    strides = [(kernel.shape[0], stride) for kernel, stride in kernels(resnet18)]
    assert strides.count((3, 2)) == strides.count((1, 2)) == 3
    assert strides.count((7, 2)) == 1
    assert strides.count((3, 1)) == 13


def test_convolutions_start_he_normal_by_fan_out(resnet18):
    for kernel, _ in kernels(resnet18):
        size, _, _, filters = kernel.shape
        expected = np.sqrt(2 / (size * size * filters))
        # The tolerance is 5 standard errors.
        assert kernel.std() == pytest.approx(expected, rel=5 / np.sqrt(2 * kernel.size))
        assert abs(kernel.mean()) < 5 * expected / np.sqrt(kernel.size)
        assert np.abs(kernel).max() > 3 * expected  # not truncated at two deviations


def test_dense_layer_starts_uniform_as_pytorchs(resnet18):
    bound = 1 / np.sqrt(512)
    dense = resnet18.layers[-1]
    for weights in (dense.kernel.numpy(), dense.bias.numpy()):
        assert np.abs(weights).max() <= bound
    kernel = dense.kernel.numpy()
    assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)
    assert np.abs(kernel).max() > 0.98 * bound
    assert dense.bias.numpy().any()


def test_two_nets_differ_and_a_seed_repeats_one():
    def weights(seed):
        keras.utils.set_random_seed(seed)
        return np.concatenate(
            [w.ravel() for w in build_model("cnn", (8, 8, 1), 3).get_weights()]
        )

    first, again, other = weights(0), weights(0), weights(1)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", ["resnet18", "resnet18_cifar", "cnn", "mlp"])
def test_every_net_returns_logits_of_any_image_shape(name):
    model = build_model(name, (8, 12, 1), 5)
    outputs = model(100 * RNG.normal(size=(3, 8, 12, 1)).astype(np.float32)).numpy()
    assert outputs.shape == (3, 5)
    assert outputs.min() < 0 or outputs.max() > 1  # These are not probabilities.
    assert model.name == name


def test_unknown_name():
    with pytest.raises(
        OptionError, match=r"'resnet50'.*resnet18, resnet18_cifar, cnn, mlp"
    ):
        build_model("resnet50", (32, 32, 3), 3)
