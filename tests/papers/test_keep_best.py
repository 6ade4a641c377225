"""The best of no step, a step and the opposite step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk


@pytest.mark.parametrize(("g", "kept"), [(1.0, 1.0), (-1.0, -1.0), (7.0, 0.0)])
def test_the_three_branches(g: float, kept: float) -> None:
    """From 3, where the loss is x^2: to 2, to 2 by the opposite step, and nowhere, as -4 and 10 are worse."""
    tx, x = gk.keep_best(optax.sgd(1.0)), jnp.array(3.0)
    u, state = tx.update(jnp.array(g), tx.init(x), x, value_fn=jnp.square)
    assert float(state.metrics["kept"]) == kept
    assert float(u) == -kept * g


def test_a_tie_stays() -> None:
    """A public code prefers x - u to x + u to x: a loss that does not change makes a random walk."""
    tx, x = gk.keep_best(optax.sgd(1.0)), jnp.array(3.0)
    u, _ = tx.update(jnp.array(1.0), tx.init(x), x, value_fn=lambda x: jnp.sum(x) * 0)
    assert float(u) == 0


def test_the_trial_that_is_not_finite_loses() -> None:
    tx, x = gk.keep_best(optax.sgd(1.0)), jnp.array(1.0)
    u, _ = tx.update(jnp.array(2.0), tx.init(x), x, value_fn=lambda x: -jnp.sqrt(x))  # x + u = -1 has no root
    assert float(u) == 2.0


def test_the_state_advances_once_a_step_and_the_opposite_step_is_the_mirror_image() -> None:
    """A public code makes the trials by steps of the optimizer itself: Adam then advances two or three times."""
    tx, x = gk.keep_best(gk.adam(0.1)), jnp.array(3.0)
    u, state = tx.update(jnp.array(-1.0), tx.init(x), x, value_fn=jnp.square)
    want, own = gk.adam(0.1).update(jnp.array(-1.0), gk.adam(0.1).init(x), x)
    np.testing.assert_array_equal(u, -want)
    assert jax.tree.map(float, state.inner) == jax.tree.map(float, own)
