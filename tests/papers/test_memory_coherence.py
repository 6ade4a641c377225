"""The memory-coherence penalty (Su, Zou, Wu, 2024)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.losses import memory_coherence
from tests.papers.replay import assert_equal, normal


def test_the_mean_of_one_minus_cosine(x64: None) -> None:
    """In NumPy; the gradient is orthogonal to every vector, whose length does not matter, and the past has none."""
    a, b = normal(0, 6, 5), normal(1, 6, 5)
    value, g = jax.jit(jax.value_and_grad(memory_coherence, (0, 1)))(a, b)
    rows = zip(np.asarray(a), np.asarray(b), strict=True)
    assert_equal(value, np.mean([1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in rows]), rtol=1e-12)
    assert_equal(g[0], 0 * a, rtol=0, atol=0)
    assert_equal(jnp.sum(g[1] * b, axis=1), jnp.zeros(6), atol=1e-14)
    assert float(jnp.abs(g[1]).max()) > 0.01


def test_the_end_points_and_vectors_of_zero(x64: None) -> None:
    a = normal(0, 3, 4)
    both = jnp.concatenate([3 * a, -a, 0 * a])
    value, g = jax.jit(jax.value_and_grad(lambda x: memory_coherence(jnp.concatenate([a, a, a]), x)))(both)
    np.testing.assert_allclose(value, 2 / 3, rtol=1e-14)
    assert np.isfinite(g).all()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"previous and memory must have one shape"):
        memory_coherence(jnp.ones((2, 3)), jnp.ones((3, 3)))
    with pytest.raises(ValueError, match="memory must be"):
        memory_coherence(jnp.ones((2, 3)), jnp.ones((2, 3), int))
