"""Temperatures of sampling, weights that stand for them, and their cooldown (Li et al., 2024)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.batches import scalarization_weights, temperature_probs
from gradkit.schedules import cooldown
from tests.papers.replay import assert_equal

SIZES = np.array([1e12, 3e6, 20.0])


def test_probabilities_from_proportional_to_uniform(x64: None) -> None:
    for tau in (1.0, 3.0):
        powers = SIZES ** (1 / tau)
        assert_equal(temperature_probs(jnp.asarray(SIZES), tau), powers / powers.sum())
    assert_equal(temperature_probs(jnp.asarray(SIZES), np.inf), np.full(3, 1 / 3))
    many = jax.jit(jax.vmap(lambda tau: temperature_probs(jnp.asarray(SIZES), tau)))(jnp.array([1.0, 3.0]))
    assert_equal(many[1], temperature_probs(jnp.asarray(SIZES), 3.0))


def test_large_sizes_are_no_overflow() -> None:
    """In float32: 1e12^5 would be infinite."""
    p = np.asarray(temperature_probs(jnp.asarray(SIZES, jnp.float32), 0.2))
    np.testing.assert_allclose(p, [1.0, 0.0, 0.0], atol=1e-25)
    assert np.isfinite(scalarization_weights(jnp.asarray(SIZES, jnp.float32), 5.0)).all()


def test_weights_stand_for_the_temperature_with_more_variance(x64: None) -> None:
    """Full gradients are equal; a single example's second moment is larger, as soon as tau is not 1."""
    p, q = (np.asarray(temperature_probs(jnp.asarray(SIZES[1:]), tau)) for tau in (1.0, 3.0))
    w = np.asarray(scalarization_weights(jnp.asarray(SIZES[1:]), 3.0))
    grads = np.array([[1.0, -2.0], [3.0, 0.5]])
    np.testing.assert_allclose(p @ w, 1, rtol=1e-12)
    np.testing.assert_allclose((p * w) @ grads, q @ grads, rtol=1e-12)
    assert np.sum(p * w**2) > 1 and np.sum(p * w**2) == pytest.approx(np.sum(q**2 / p))
    assert_equal(scalarization_weights(jnp.asarray(SIZES), 1.0), np.ones(3))


def test_the_temperature_falls_in_one_step() -> None:
    assert cooldown(3)(jnp.arange(5)).tolist() == [5.0, 5.0, 5.0, 1.0, 1.0]
    assert cooldown(0, tau_low=2.0)(0) == 2.0


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="tau must be"):
        temperature_probs(SIZES, 0.0)
    with pytest.raises(ValueError, match="sizes must be positive"):
        scalarization_weights(jnp.array([1.0, 0.0]), 2.0)
    with pytest.raises(ValueError, match="sizes must be numbers"):
        temperature_probs(jnp.ones((2, 2)), 2.0)
