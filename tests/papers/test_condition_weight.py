"""Weight conditioning (Saratchandran, Wang, Lucey, 2024)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.layers import condition_weight
from tests.papers.replay import assert_equal, normal


def test_badly_scaled_units_are_conditioned(x64: None) -> None:
    """At most sqrt(4) above the best diagonal scaling, of which undoing a bad one is one (van der Sluis)."""
    good = normal(0, 8, 4)
    w = good * jnp.array([[1e-3, 1.0, 30.0, 1e4]])
    conditioned = condition_weight(w)
    assert np.linalg.cond(conditioned) < 1e-3 * np.linalg.cond(w)
    assert np.linalg.cond(conditioned) <= 2 * np.linalg.cond(good)
    assert_equal(conditioned, condition_weight(good))
    assert_equal(jnp.sum(condition_weight(normal(1, 3, 3, 2, 5)) ** 2, (0, 1, 2)), np.ones(5))


def test_with_its_derivative_it_is_weight_normalization_of_length_1(x64: None) -> None:
    """The gradient of v in `gk.weight_normalized` at g = 1 of units that are not of norm 1: across them, over |w|."""
    w, G = normal(0, 6, 3), normal(1, 6, 3)
    n = jnp.sqrt(jnp.sum(w**2, 0, keepdims=True))
    (d,) = jax.vjp(condition_weight, w)[1](G)
    tx = gk.weight_normalized(gk.sgd(1.0, momentum=0.0))
    state = tx.init(w)
    latent = state.latent._replace(g=jnp.ones((1, 3)))
    _, after = tx.update(G, state._replace(latent=latent), w)
    assert_equal(latent.v - after.latent.v, d, rtol=1e-11, atol=1e-13)
    (constant,) = jax.vjp(lambda w: condition_weight(w, differentiate=False), w)[1](G)
    assert_equal(constant, G / n)


def test_zero_units() -> None:
    w = jnp.ones((3, 2)).at[:, 0].set(0.0)
    with pytest.raises(ValueError, match=r"every unit of w must have an entry that is not 0"):
        condition_weight(w)
    d = jax.jit(jax.grad(lambda w: condition_weight(w)[0].sum()))(w)
    assert (d[:, 0] == 0).all() and np.isfinite(d).all()
