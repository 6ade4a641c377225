"""The inner loop of surrogate methods (Lavington et al., 2023)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk


def bowl(y, centre):
    return jnp.sum((y["w"] - centre) ** 2) / 2


def test_it_is_the_loop_written_out(x64):
    """With the state of the optimizer going through, and beginning anew where none is given."""
    tx, centre = gk.sgd(0.1, momentum=0.9), jnp.array([1.0, -2.0])
    solve = jax.jit(gk.minimise_inner(bowl, tx, 4))
    y = {"w": jnp.zeros(2)}
    got, state = solve(y, None, centre)
    got, _ = solve(got, state, centre)
    want, trace = np.zeros(2), np.zeros(2)
    for _ in range(8):
        trace = 0.9 * trace + want - np.asarray(centre)
        want = want - 0.1 * trace
    np.testing.assert_allclose(got["w"], want, rtol=1e-13)


def test_a_line_search_gets_what_it_asks_for():
    y = {"w": jnp.zeros(2)}
    solve = gk.minimise_inner(bowl, gk.truncated_model(jnp.inf), 30)  # halves the distance in every step
    np.testing.assert_allclose(solve(y, None, jnp.array([1.0, -2.0]))[0]["w"], [1, -2], atol=1e-6)
    with pytest.raises(ValueError, match="inner_steps must be an integer >= 1"):
        gk.minimise_inner(bowl, optax.sgd(0.1), 0)
