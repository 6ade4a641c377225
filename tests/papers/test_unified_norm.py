"""Unified normalization (Yang et al., 2022)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.layers import UnifiedNormState, unified_norm
from tests.papers.replay import assert_equal, normal

COUNT = jnp.zeros((), jnp.int32)


def test_several_steps_equal_a_reference_of_the_algorithm(x64: None) -> None:
    """Six steps in NumPy with a window of 4 and one step of warm-up."""
    scale, bias, eps = normal(10, 3), normal(11, 3), 1e-5
    state, control = UnifiedNormState(COUNT, jnp.ones((4, 3))), jnp.zeros((4, 3))
    squares, parts = [np.ones(3)] * 4, [np.zeros(3)] * 4

    @jax.jit
    def step(x: jax.Array, g: jax.Array, state: Any, control: jax.Array) -> Any:
        f = lambda x, e: unified_norm(x, scale, bias, state, e, warmup_steps=1)  # noqa: E731
        y, back, new = jax.vjp(f, x, control, has_aux=True)
        return y, back(g), new

    skipped = 0
    for t in range(6):
        x, g = np.asarray(normal(t, 4, 2, 3)) * [1.0, 2.0, 0.5], np.asarray(normal(20 + t, 4, 2, 3))
        y, (dx, control), state = step(jnp.asarray(x), jnp.asarray(g), state, control)
        b = (x**2).mean((0, 1))
        squares = [b, *squares[:3]]
        A, V, G = np.mean(squares, 0), np.var(squares, 0), np.prod(squares, 0) ** 0.25
        out = ((A - G) / A > 4 * V / A**2) | (t < 1)
        skipped += out.sum()
        root = np.sqrt(np.where(out, b, np.clip(G, b / 5, b * 5)) + eps)
        z, gz = x / root, g * np.asarray(scale)
        parts = [(gz * z).mean((0, 1)), *parts[:3]]
        assert_equal(y, z * np.asarray(scale) + np.asarray(bias), rtol=1e-10)
        assert_equal(dx, (gz - np.mean(parts, 0) * z) / root, rtol=1e-9)
        assert_equal((state.mean_squares, control), (np.stack(squares), np.stack(parts)), rtol=1e-10)
    assert skipped < 18


def test_equal_batches_are_normalised_exactly(x64: None) -> None:
    """All means of the window agree: z has quadratic mean 1, and the clamp and the skip have nothing to do."""
    x = normal(0, 16, 3)
    state = UnifiedNormState(COUNT, jnp.broadcast_to(jnp.mean(x**2, 0).reshape(1, 3), (4, 3)))
    y, _ = unified_norm(x, jnp.ones(3), jnp.zeros(3), state, jnp.zeros((4, 3)), warmup_steps=0, eps=1e-12)
    assert_equal(jnp.mean(y**2, 0), np.ones(3), rtol=1e-10)


def test_a_window_far_away_is_clamped(x64: None) -> None:
    """A window of one old batch 10^6 times as large: sqrt(10^6) is cut to 5."""
    x = normal(0, 16, 3)
    b = jnp.mean(x**2, 0)
    state = UnifiedNormState(COUNT, jnp.stack([1e6 * b, b]))
    y, _ = unified_norm(x, jnp.ones(3), jnp.zeros(3), state, jnp.zeros((2, 3)), warmup_steps=0, eps=1e-12)
    # (A - G) / A is 0.998, twice V / A^2 is 2.0: no outlier by this rule.
    assert_equal(y, x / jnp.sqrt(5 * b).reshape(1, 3), rtol=1e-10)


def test_bad_input() -> None:
    x, c, w = jnp.ones((2, 3)), jnp.ones(3), jnp.ones((4, 3))
    state = UnifiedNormState(COUNT, w)
    for name, bad in (("clamp", 0.5), ("warmup_steps", -1), ("eps", 0.0)):
        with pytest.raises(ValueError, match=rf"\b{name} must be"):
            unified_norm(x, c, c, state, w, **{name: bad})
    with pytest.raises(ValueError, match=r"windows shape \(window, channels\)"):
        unified_norm(x, c, c, state, c)
