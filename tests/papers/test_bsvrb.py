"""Variance reduction over blocks of bilevel problems (Hu et al., 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.gradients import bsvrb, storm_blocks
from tests.papers.replay import assert_equal, normal

M, SAMPLED = 6, 2


def test_one_block_without_noise_is_tracked_exactly(x64: None) -> None:
    """u = h at the step before gives u = h now, for any a; also of all blocks at once."""
    for m in (1, 3):
        h = [normal(t, m, 2) for t in range(4)]
        u = h[0]
        for t in range(1, 4):
            u = storm_blocks(u, h[t], h[t - 1], jnp.arange(m), a=0.3)
            assert_equal(u, h[t])


def test_sampled_blocks_are_corrected_by_the_constant_and_others_stay(x64: None) -> None:
    u, h, before = {"a": normal(0, M, 2)}, {"a": normal(1, SAMPLED, 2)}, {"a": normal(2, SAMPLED, 2)}
    got = jax.jit(lambda i, a: storm_blocks(u, h, before, i, a=a))(jnp.array([4, 1]), 0.2)["a"]
    c = (M - SAMPLED) / (SAMPLED * 0.8) + 0.8
    want = np.array(u["a"])
    want[[4, 1]] = 0.8 * want[[4, 1]] + 0.2 * np.asarray(h["a"]) + c * (np.asarray(h["a"]) - np.asarray(before["a"]))
    assert_equal(got, want)


def upper(x: Any, y: Any, batch: Any) -> jax.Array:
    return jnp.sum(jnp.square(y - 1)) / 2 + 0 * batch


def lower(x: Any, y: Any, batch: Any) -> jax.Array:
    return jnp.sum(jnp.square(y - x - batch)) / 2


def test_a_run_over_blocks_in_numpy(x64: None) -> None:
    """Two of three blocks in every step; all blocks move by their estimates."""
    shifts, a = np.array([-1.0, 0.5, 2.0]), 0.3
    method = bsvrb(upper, lower, learning_rate=0.1, lower_learning_rate=0.2, linear_learning_rate=0.3, a=a)
    x, y, v = 0.7, np.array([0.1, -0.3, 1.0]), np.zeros(3)
    state, step = method.init(jnp.asarray(x), jnp.asarray(y)), jax.jit(method.step)
    s, u, z, seen, before = np.zeros(3), np.zeros(3), 0.0, np.zeros(3, bool), (x, y, v)
    c = (3 - 2) / (2 * (1 - a)) + (1 - a)
    for t, i in enumerate(np.array([[0, 1], [1, 2], [0, 2], [0, 1]])):
        of = lambda p, i=i: (p[1][i] - p[0] - shifts[i], p[2][i] - (p[1][i] - 1), np.mean(p[2][i]))  # noqa: E731
        (h_y, h_v, d), (b_y, b_v, b) = of((x, y, v)), of(before)
        for est, h, old in ((s, h_y, b_y), (u, h_v, b_v)):
            est[i] = np.where(seen[i], (1 - a) * est[i] + a * h + c * (h - old), h)
        z = d if t == 0 else d + (1 - a) * (z - b)
        seen[i], before = True, (x, y, v)
        x, y, v = x - 0.1 * z, y - 0.2 * s, v - 0.3 * u
        state, value = step(state, jnp.asarray(i), jnp.zeros(2), jnp.asarray(shifts[i]))
        assert_equal((state.x, state.y, state.v), (x, y, v), rtol=1e-10)
        assert_equal(value, np.mean((before[1][i] - 1) ** 2) / 2)


def test_it_finds_the_minimum_over_all_blocks(x64: None) -> None:
    """y_i = x + shift_i: x is 1 minus the mean of the shifts, seen by two of six blocks at a time."""
    shifts = jnp.asarray(np.linspace(-2, 3, M))
    method = bsvrb(upper, lower, learning_rate=0.02, lower_learning_rate=0.1, linear_learning_rate=0.1)

    def step(state: Any, key: jax.Array) -> Any:
        i = jax.random.choice(key, M, (SAMPLED,), replace=False)
        return method.step(state, i, jnp.zeros(SAMPLED), shifts[i])[0], state.x

    start = method.init(jnp.asarray(4.0), jnp.zeros(M))
    _, xs = jax.jit(lambda s, k: jax.lax.scan(step, s, k))(start, jax.random.split(jax.random.key(0), 3000))
    assert abs(float(jnp.mean(xs[-1000:])) - 0.5) < 0.2


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="a must be"):
        storm_blocks(jnp.ones(3), jnp.ones(1), jnp.ones(1), jnp.array([0]), a=1.0)
    with pytest.raises(ValueError, match="leading axis of 2 sampled blocks"):
        storm_blocks(jnp.ones(3), jnp.ones(1), jnp.ones(1), jnp.array([0, 1]), a=0.5)
    with pytest.raises(ValueError, match="every leaf of y must have a leading axis of blocks"):
        rates = dict.fromkeys(("learning_rate", "lower_learning_rate", "linear_learning_rate"), 0.1)
        bsvrb(upper, lower, **rates).init(jnp.ones(2), {"a": jnp.ones(3), "b": jnp.ones(2)})
