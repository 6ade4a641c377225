"""A projected step is the nearest point of the set to where the step leads."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk


def test_the_path_is_that_of_projected_gradient_descent() -> None:
    """Least squares over non-negative numbers, with momentum: written out in NumPy."""
    rng = np.random.default_rng(0)
    A, b = rng.standard_normal((6, 4)).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    tx = gk.projected(gk.sgd(0.05, momentum=0.9), lambda x: jax.tree.map(lambda x: jnp.maximum(x, 0), x))
    w = {"w": jnp.full(4, -1.0)}
    state, update = tx.init(w), jax.jit(tx.update)
    x, m = np.full(4, -1.0), np.zeros(4)
    for _ in range(60):
        g = A.T @ (A @ np.asarray(w["w"]) - b)
        u, state = update({"w": jnp.asarray(g)}, state, w)
        w = optax.apply_updates(w, u)
        m = 0.9 * m + A.T @ (A @ x - b)
        x = np.maximum(x - 0.05 * m, 0)
        assert np.min(np.asarray(w["w"])) >= 0
    # 60 float32 steps of numbers of order 1, each with some ten roundings; the iteration contracts.
    np.testing.assert_allclose(np.asarray(w["w"]), x, atol=60 * 10 * 2**-23)
    assert np.min(x) == 0 < np.max(x)


def test_a_step_inside_the_set_is_that_of_the_inner_method() -> None:
    w, g = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([0.5, 0.25])}
    ball = gk.projected(gk.adam(0.1), lambda x: optax.projections.projection_l2_ball(x, 10.0))
    u, _ = ball.update(g, ball.init(w), w)
    want, _ = gk.adam(0.1).update(g, gk.adam(0.1).init(w), w)
    # x + u and minus x again: two roundings of numbers of order 2.
    np.testing.assert_allclose(np.asarray(u["w"]), np.asarray(want["w"]), atol=2 * 2**-23)


def test_a_projection_of_other_shapes_is_refused() -> None:
    w = {"w": jnp.ones(2)}
    tx = gk.projected(gk.sgd(0.1), lambda x: {"w": x["w"][:1]})
    with pytest.raises(ValueError, match="projection must return a tree like its argument"):
        tx.update(w, tx.init(w), w)
