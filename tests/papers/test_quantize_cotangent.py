"""Gradients with few bits, of few samples (Gao et al., 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.layers import activation_gradient_pruning, quantize_cotangent
from tests.papers.replay import assert_equal, normal

N, DRAWS = 6, 4000


def gradients() -> jax.Array:
    """Samples of very different sizes, one of equal entries, one of zeros."""
    g = np.array(normal(0, N, 3, 2)) * np.array([4.0, 2.0, 1.0, 0.3, 1.0, 1.0])[:, None, None]
    g[4], g[5] = 0.7, 0.0
    return jnp.asarray(g)


def back(g: jax.Array, key: Any, **more: Any) -> jax.Array:
    return jax.vjp(lambda x: quantize_cotangent(x, key, **more), jnp.zeros_like(g))[1](g)[0]


def unbiased(draw: Any, g: jax.Array) -> np.ndarray:
    got = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), DRAWS)))
    # Five standard errors, as the draws have them; entries that never change are exact.
    assert np.all(np.abs(got.mean(0) - g) <= 5 * got.std(0) / np.sqrt(DRAWS) + 1e-12)
    return got


def test_pruning_is_unbiased_and_keeps_a_share(x64: None) -> None:
    g = gradients()
    got = unbiased(lambda key: activation_gradient_pruning(g, key, keep=0.5), g)
    kept = np.any(got != 0, axis=(2, 3)).sum(1)
    r = np.maximum(np.max(g, (1, 2)), 0) - np.minimum(np.min(g, (1, 2)), 0)
    p = np.minimum(1, 0.5 * N * r / r.sum())
    assert abs(kept.mean() - p.sum()) < 5 * kept.std() / np.sqrt(DRAWS) and p.sum() <= 0.5 * N
    assert 0 < p[4] < 1 and p[5] == 0


@pytest.mark.parametrize("bits", [1, 3])
def test_the_whole_is_unbiased_and_on_few_levels(bits: int, x64: None) -> None:
    g = gradients()
    assert_equal(quantize_cotangent(g, 0), g)
    got = unbiased(lambda key: back(g, key, bits=bits, keep=1.0), g)
    for i in range(N):
        low, high = float(g[i].min()), float(g[i].max())
        levels = np.linspace(low, high, 2**bits)
        assert np.abs(got[:, i].reshape(-1, 1) - levels[None]).min(1).max() < 1e-12 * (1 + abs(low))
    unbiased(lambda key: back(g, key, bits=bits), g)
    channels = np.asarray(back(g, 1, bits=1, keep=1.0, axis=1))
    assert all(len(np.unique(channels[:, c])) == 2 for c in range(3))


def test_the_released_pruning_is_biased_and_here_for_comparison(x64: None) -> None:
    """The N / b samples with the largest entries, nothing else, without a factor."""
    g = gradients()
    got = np.asarray(activation_gradient_pruning(g, 0, keep=0.5, pruning="topk"))
    largest = np.argsort(-np.abs(g).max((1, 2)))[:3]
    want = np.zeros_like(g)
    want[largest] = np.asarray(g)[largest]
    np.testing.assert_array_equal(got, want)
    assert np.abs(got.mean() - g.mean()) > 0.01
    whole = np.asarray(back(g, 0, bits=4, pruning="topk"))
    assert (np.any(whole != 0, axis=(1, 2))).sum() == round(N / 4)


def test_short_numbers_and_bad_input() -> None:
    g = jax.grad(lambda x: jnp.sum(quantize_cotangent(x, 0).astype(jnp.float32) ** 2))(jnp.ones((4, 3), jnp.bfloat16))
    assert g.dtype == jnp.bfloat16
    zero = jax.jit(lambda g: back(g, 0))(jnp.zeros((4, 3)))
    np.testing.assert_array_equal(zero, 0)
    for name, bad in (("bits", 0), ("keep", 0.0), ("pruning", "all"), ("axis", 2)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            quantize_cotangent(jnp.ones((4, 3)), 0, **{name: bad})
