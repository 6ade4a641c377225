"""Complex momentum: its closed form, its reductions, and the bilinear game."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk


def test_is_a_sum_of_cosines(x64: None) -> None:
    g, decay, angle = np.random.default_rng(0).standard_normal((6, 3)), 0.8, 0.7
    tx = gk.complex_momentum(0.1, decay=decay, angle=angle)
    update, x = jax.jit(tx.update), jnp.zeros(3)
    state = tx.init(x)
    for t in range(6):
        u, state = update(jnp.asarray(g[t]), state, x)
        want = -0.1 * sum(decay**k * np.cos(k * angle) * g[t - k] for k in range(t + 1))
        np.testing.assert_allclose(u, want, rtol=1e-13, atol=1e-15)


def test_the_angle_zero_is_the_heavy_ball_and_adam_without_a_correction(x64: None) -> None:
    g = np.random.default_rng(1).standard_normal((5, 3))
    plain: Any = gk.scale_by_complex_momentum(decay=0.9, angle=0.0)
    adam: Any = gk.scale_by_complex_adam(angle=0.0)
    x = jnp.zeros(3)
    a, b, ball, mean, square = plain.init(x), adam.init(x), np.zeros(3), np.zeros(3), np.zeros(3)
    for t in range(5):
        u, a = plain.update(jnp.asarray(g[t]), a)
        v, b = adam.update(jnp.asarray(g[t]), b)
        ball, mean, square = 0.9 * ball + g[t], 0.9 * mean + 0.1 * g[t], 0.999 * square + 0.001 * g[t] ** 2
        np.testing.assert_allclose(u, ball, rtol=1e-14)
        np.testing.assert_allclose(v, mean / (np.sqrt(square / (1 - 0.999 ** (t + 1))) + 1e-8), rtol=1e-12)


@pytest.mark.parametrize(
    ("angle", "low", "high"),
    [(0.0, 1e3, np.inf), (math.pi / 8, 0.0, 1e-15), (math.pi / 4, 0.0, 1e-2), (math.pi, 1.0, 2.0)],
)
def test_the_bilinear_game(angle: float, low: float, high: float, x64: None) -> None:
    """Both players of x y at once, 3000 steps from (1, 1) at 0.05 and 0.9: the heavy ball diverges, negative momentum
    stays, and what is between them converges."""
    tx = gk.complex_momentum(0.05, angle=angle)

    def step(carry: tuple, _: None) -> tuple:
        x, state = carry
        u, state = tx.update(jnp.stack([x[1], -x[0]]), state, x)
        return (x + u, state), None

    start = jnp.ones(2)
    (x, _), _ = jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), length=3000))()
    size = float(np.linalg.norm(x))
    assert low <= size or not np.isfinite(size)
    assert size <= high or high == np.inf
