"""Factored per-example gradients compared with explicit gradients, which NumPy forms."""

import numpy as np
import pytest
import tensorflow as tf

from srel_tf.gradients.factored import (
    EmbeddingGradient,
    ExplicitGradient,
    OuterProductGradient,
)

RNG = np.random.default_rng(0)


def outer(n, m, positions, groups=2, k=3, o=4):
    """Return gradients of a variable [K, G, O] for n examples and M functions, factored and explicit."""
    inputs, signals = (
        RNG.normal(size=(n, groups, positions, k)),
        RNG.normal(size=(n, m, groups, positions, o)),
    )
    whole = np.einsum("ngtk,nmgto->nmkgo", inputs, signals)
    return OuterProductGradient(
        tf.constant(inputs), tf.constant(signals), ((groups,), (k,), (o,)), (1, 0, 2)
    ), whole


def windowed(n, m, pixels, positions, groups=2, k=6, o=4):
    """Return the same for windows: the input at each position consists of three pixels, or zeros (index P)."""
    windows = RNG.integers(0, pixels + 1, size=(positions, 3), dtype=np.int32)
    inputs, signals = (
        RNG.normal(size=(n, groups, pixels, k)),
        RNG.normal(size=(n, m, groups, positions, o)),
    )
    seen = np.concatenate([inputs, np.zeros((n, groups, 1, k))], axis=2)[:, :, windows]
    whole = np.einsum("ngtjk,nmgto->nmjkgo", seen, signals).reshape(
        n, m, 3 * k, groups, o
    )
    return OuterProductGradient(
        tf.constant(inputs),
        tf.constant(signals),
        ((groups,), (3 * k,), (o,)),
        (1, 0, 2),
        windows,
    ), whole


def lookup(n, m, positions=5, rows=6, o=4):
    """Return gradients of a table [V, O], factored and explicit. Tokens occur more than once."""
    ids, signals = (
        RNG.integers(0, rows, size=(n, positions)),
        RNG.normal(size=(n, m, positions, o)),
    )
    whole = np.zeros((n, m, rows, o))
    for i, t in np.ndindex(n, positions):
        whole[i, :, ids[i, t]] += signals[i, :, t]
    return EmbeddingGradient(
        tf.constant(ids, tf.int32), tf.constant(signals), (rows, o)
    ), whole


def formed(n, m):
    whole = RNG.normal(size=(n, m, 3, 2))
    return ExplicitGradient(tf.constant(whole)), whole


MAKE = {
    "one position": lambda n, m: outer(n, m, 1),
    "positions": lambda n, m: outer(n, m, 5),
    "more positions than weights": lambda n, m: outer(n, m, 40, k=2, o=2),
    "windows over few pixels": lambda n, m: windowed(n, m, 2, 3),
    "windows over many pixels": lambda n, m: windowed(n, m, 40, 3),
    "lookup": lookup,
    "formed": formed,
}


@pytest.mark.parametrize("kind", MAKE)
def test_inner_products_of_all_pairs(kind):
    (sources, a), (targets, b) = MAKE[kind](3, 1), MAKE[kind](4, 2)
    expected = np.einsum("ip,jmp->ijm", *flat(a[:, 0], b))
    np.testing.assert_allclose(sources.inner(targets), expected, rtol=1e-11, atol=1e-12)


def flat(a, b):
    return a.reshape(len(a), -1), b.reshape(*b.shape[:2], -1)


@pytest.mark.parametrize("positions", [1, 5, 40])
def test_both_ways_of_an_outer_product_agree(positions):
    (sources, a), (targets, b) = outer(3, 1, positions), outer(4, 2, positions)
    expected = np.einsum("ip,jmp->ijm", *flat(a[:, 0], b))
    for way in (sources._by_gram, sources._by_kernel):
        np.testing.assert_allclose(way(targets), expected, rtol=1e-11, atol=1e-12)


def test_the_cheaper_way_is_taken(monkeypatch):
    """With few positions and many weights, products of positions are cheaper. In the opposite case, kernels are."""
    taken = []
    for way in ("_by_gram", "_by_kernel"):
        monkeypatch.setattr(
            OuterProductGradient, way, lambda self, targets, way=way: taken.append(way)
        )
    for positions, k in ((1, 64), (256, 2)):
        (sources, _), (targets, _) = (
            outer(20, 1, positions, 1, k, k),
            outer(20, 2, positions, 1, k, k),
        )
        sources.inner(targets)
    assert taken == ["_by_gram", "_by_kernel"]


def test_parts_hold_what_is_seen_at_all_positions(monkeypatch):
    """With many positions and few weights, the patches are larger than the gradients that are formed from them."""
    monkeypatch.setattr("srel_tf.gradients.factored.ENTRIES", 3000)
    factor, _ = outer(20, 2, 100, groups=1, k=8, o=2)
    sizes = factor._sizes(factor)
    assert sizes.gram > sizes.explicit
    assert max(factor.parts(factor)) * 100 * 8 <= 3000


@pytest.mark.parametrize("pixels", [2, 40])
def test_products_by_pixels_agree_with_kernels_formed(pixels):
    """With few pixels, products of pixels are summed. With many pixels, products of patches are summed."""
    (sources, a), (targets, b) = windowed(3, 1, pixels, 3), windowed(4, 2, pixels, 3)
    sizes = sources._sizes(targets)
    assert (sizes.pixel_products < sizes.patch_products) == (pixels == 2)
    expected = np.einsum("ip,jmp->ijm", *flat(a[:, 0], b))
    for way in (sources._by_gram, sources._by_kernel):
        np.testing.assert_allclose(way(targets), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", MAKE)
def test_norms_directions_and_single_gradients(kind):
    factor, whole = MAKE[kind](3, 2)
    direction = RNG.normal(size=whole.shape[2:])
    np.testing.assert_allclose(
        factor.along(tf.constant(direction)),
        np.tensordot(whole, direction, direction.ndim),
    )
    np.testing.assert_allclose(factor.only(0).gradient(1), whole[1, 0], rtol=1e-12)
    np.testing.assert_allclose(factor.only(1).gradient(2), whole[2, 1], rtol=1e-12)
