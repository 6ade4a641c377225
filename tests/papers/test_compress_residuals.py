"""Inputs kept in eight bits (Pan et al., 2021)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.layers import ResidualRanges, compress_residuals, running_ranges
from tests.papers.replay import normal


def dense(x: Any, w: Any) -> Any:
    return x @ w


def test_the_forward_pass_is_exact() -> None:
    """To the bit, whatever the function, the groups and the key."""
    x, w = normal(0, 6, 8), normal(1, 8, 3)
    for fn, rest in ((dense, (w,)), (jax.nn.gelu, ()), (jax.nn.softmax, ())):
        for groups in (1, 4, None):
            got = compress_residuals(fn, bits=2, num_groups=groups)(x, *rest, key=0)
            np.testing.assert_array_equal(got, fn(x, *rest))


def test_the_gradient_of_a_dense_layer_is_unbiased(x64: None) -> None:
    """Of the kernel, over draws of the rounding; of the input exact, as it does not depend on the input."""
    x, w, c = normal(0, 6, 8), normal(1, 8, 3), normal(2, 6, 3)
    layer = compress_residuals(dense, bits=3, num_groups=2)
    gradient = jax.jit(jax.vmap(jax.grad(lambda x, w, key: jnp.sum(c * layer(x, w, key=key)), (0, 1)), (None, None, 0)))
    draws = 2000
    dx, dw = gradient(x, w, jax.random.split(jax.random.key(0), draws))
    np.testing.assert_allclose(dx, np.broadcast_to(c @ w.T, dx.shape), rtol=1e-12, atol=1e-13)
    # Rounding at random has a deviation of half a step at most, of two groups of four channels; five of the mean's.
    step = max(np.ptp(np.asarray(x)[:, :4]), np.ptp(np.asarray(x)[:, 4:])) / 7
    sd = step / 2 * np.linalg.norm(np.asarray(c), axis=0).max()
    np.testing.assert_allclose(np.mean(dw, axis=0), x.T @ c, atol=5 * sd / np.sqrt(draws))
    assert np.std(np.asarray(dw), axis=0).max() > 1e-3


def test_each_group_has_a_range_of_its_own(x64: None) -> None:
    """A head with large numbers does not take the bits of the other: errors are below a step of the own range."""
    x = jnp.stack([normal(0, 5, 4), 1000 * normal(1, 5, 4)], axis=1)  # (5, heads, 4)
    square = compress_residuals(lambda x: x**2 / 2, axis=1, num_groups=None)  # whose gradient is x^
    near = np.asarray(jax.grad(lambda x: jnp.sum(square(x, key=3)))(x))
    for head in range(2):
        own = np.asarray(x)[:, head]
        error = np.abs(near[:, head] - own).max()
        assert 0 < error < np.ptp(own) / 255
    constant = compress_residuals(lambda x: x**2 / 2)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(constant(x, key=0)))(jnp.full(3, 0.7)), [0.7] * 3)


def test_running_ranges_clip(x64: None) -> None:
    """The first batch is copied, later ones are averaged; what is outside goes to the ends of the range."""
    first = running_ranges(np.array([0.0, 1.0]), None)
    np.testing.assert_allclose(first, [[1], [0]])
    np.testing.assert_allclose(running_ranges(np.array([-10.0, 10.0]), first), [[0.9 + 2], [-1]])
    layer = compress_residuals(lambda x: x**2 / 2)
    near = jax.grad(lambda x: jnp.sum(layer(x, key=0, ranges=first)))(jnp.array([-3.0, 0.0, 1.0, 7.0]))
    np.testing.assert_allclose(near, [0, 0, 1, 1], rtol=1e-13)


def test_bytes_are_kept_and_no_floats_of_this_size() -> None:
    """What the backward pass holds: a byte per entry, and nothing of x in four bytes."""
    x, w = jnp.ones((64, 32)), jnp.ones((32, 2))
    kept = jax.tree.leaves(jax.vjp(lambda x, w: compress_residuals(dense)(x, w, key=0), x, w)[1])
    sizes = {np.dtype(k.dtype).name: 0 for k in kept}
    for k in kept:
        sizes[np.dtype(k.dtype).name] += k.size
    assert sizes["uint8"] == x.size and sizes["float32"] < x.size / 8


def test_bad_input() -> None:
    x = np.ones((4, 6), np.float32)
    with pytest.raises(ValueError, match="bits must be"):
        compress_residuals(dense, bits=9)
    with pytest.raises(ValueError, match="num_groups must divide axis -1"):
        compress_residuals(dense, num_groups=4)(x, key=0)
    with pytest.raises(ValueError, match="ranges must have one alpha and one beta per group"):
        compress_residuals(dense, num_groups=2)(x, key=0, ranges=ResidualRanges(jnp.ones(1), jnp.ones(1)))
