"""BO-REP (Hao, Gong and Liu, 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.gradients import bo_rep
from tests.papers.replay import assert_equal, normal

H = np.array([[2.0, 0.3], [0.3, 1.0]])
B = np.array([[1.0, -0.5, 0.2], [0.0, 2.0, 1.0]])


def upper(x: Any, y: Any, batch: Any) -> jax.Array:
    return jnp.sum(jnp.square(y - 1 - batch)) / 2 + jnp.sum(jnp.square(x)) / 20


def lower(x: Any, y: Any, batch: Any) -> jax.Array:
    return y @ H @ y / 2 - y @ B @ x + batch * jnp.sum(y)


RATES = {"learning_rate": 0.05, "lower_learning_rate": 0.1, "linear_learning_rate": 0.2}


def test_five_steps_of_the_algorithm(x64: None) -> None:
    """In NumPy: each of the lower steps has its own gradient, and grad_x F is there."""
    h, b, x, y = H, B, np.array([0.5, -1.0, 2.0]), np.array([1.0, -1.0])
    bo = bo_rep(upper, lower, **RATES)
    state, step = bo.init(jnp.asarray(x), jnp.asarray(y)), jax.jit(bo.step)
    v, m = np.zeros(2), np.zeros(3)
    for t in range(5):
        batch = 0.1 * t
        if t % 3 == 0:
            for _ in range(3):
                y = y - 0.1 * (h @ y - b @ x + batch)
        d_v, d_x = h @ v - (y - 1 - batch), x / 10 + b.T @ v
        v, m = v - 0.2 * d_v, 0.9 * m + 0.1 * d_x
        x = x - 0.05 * m / (np.linalg.norm(m) + 1e-10)
        state, _ = step(state, jnp.asarray(batch), jnp.asarray(batch))
        assert_equal((state.x, state.y, state.v), (x, y, v), rtol=1e-9)


def test_x_moves_by_its_rate_and_y_stays_between_refinements(x64: None) -> None:
    bo = bo_rep(upper, lower, **RATES, update_interval=4)
    state, zero = bo.init({"a": normal(0, 3)}["a"], normal(1, 2)), jnp.asarray(0.0)
    step = jax.jit(bo.step)
    for t in range(9):
        new, _ = step(state, zero, zero)
        np.testing.assert_allclose(np.linalg.norm(np.asarray(new.x) - state.x), 0.05, rtol=1e-7)
        assert np.array_equal(new.y, state.y) == (t % 4 != 0)
        state = new


def test_the_first_refinement_and_lower_batches_of_their_own(x64: None) -> None:
    bo = bo_rep(upper, lower, **RATES, lower_steps=2)
    x, y = normal(0, 3), normal(1, 2)
    batches = jnp.array([0.3, -0.2, 0.5])
    state = bo.init(x, y, batches)
    want = np.asarray(y)
    for b in np.asarray(batches):
        want = want - 0.1 * (H @ want - B @ np.asarray(x) + b)
    assert_equal(state.y, want)
    new, _ = bo.step(state, jnp.asarray(0.0), jnp.asarray(0.0), batches[:2])
    for b in np.asarray(batches[:2]):
        want = want - 0.1 * (H @ want - B @ np.asarray(x) + b)
    assert_equal(new.y, want)


def test_it_gets_to_the_minimum_and_as_near_as_its_steps_are_long(x64: None) -> None:
    falling = lambda t: 0.1 / (1 + t.astype(float) / 20)  # noqa: E731
    bo = bo_rep(upper, lower, **{**RATES, "learning_rate": falling}, update_interval=1)
    zero = jnp.asarray(0.0)
    state, _ = jax.jit(lambda s: jax.lax.scan(lambda s, _: bo.step(s, zero, zero), s, None, 2000))(
        bo.init(jnp.ones(3), jnp.zeros(2))
    )
    h, b = H, B
    solve = np.linalg.solve(h, b)
    best = np.linalg.solve(solve.T @ solve + np.eye(3) / 10, solve.T @ np.ones(2))
    assert np.linalg.norm(np.asarray(state.x) - best) < 0.02


def test_bad_input() -> None:
    for name, bad in (("momentum", 1.0), ("update_interval", 0), ("lower_steps", 0), ("learning_rate", -1.0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            bo_rep(upper, lower, **{name: bad})
