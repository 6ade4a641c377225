"""Hedge over the exits of a network: multiplicative weights with a floor."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk

LOSSES = np.array([[0.5, 1.0, 3.0], [2.0, 0.1, 1.0], [1.0, 1.0, 0.2]])


def run(**how: object) -> np.ndarray:
    exits = gk.aggregation.hedge_weights(3, **how)
    alpha = exits.init()
    for L in LOSSES:
        alpha = exits.update(L, alpha)
    return np.asarray(alpha)


def test_without_a_floor_weights_are_powers_of_the_summed_losses(x64: None) -> None:
    want = 0.7 ** LOSSES.sum(0)
    np.testing.assert_allclose(run(discount=0.7, smoothing=0.0), want / want.sum(), rtol=1e-14)


def test_no_discount_and_full_smoothing_are_uniform(x64: None) -> None:
    np.testing.assert_allclose(run(discount=1.0), np.full(3, 1 / 3), rtol=1e-15)
    np.testing.assert_allclose(run(discount=0.7, smoothing=1.0), np.full(3, 1 / 3), rtol=1e-15)


def test_the_floor_is_of_the_layers_before_the_sum_is_made_one(x64: None) -> None:
    """With two layers and an exit on the input: max(1/3 0.1^L, 0.4 / 2), over the sum."""
    exits = gk.aggregation.hedge_weights(3, 0.1, 0.4)
    raw = np.maximum(0.1 ** np.array([0.0, 0.1, 3.0]) / 3, 0.2)
    np.testing.assert_allclose(exits.update(np.array([0.0, 0.1, 3.0]), exits.init()), raw / raw.sum(), rtol=1e-14)


def test_equal_losses_normalized_are_no_nan(x64: None) -> None:
    """The authors' code divides 0 by 0 there; else the smallest counts as 0, the largest as 1."""
    exits = gk.aggregation.hedge_weights(3, 0.5, 0.0, normalize_losses=True)
    np.testing.assert_allclose(exits.update(np.ones(3), exits.init()), np.full(3, 1 / 3), rtol=1e-15)
    want = 0.5 ** np.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(exits.update(np.array([2.0, 3, 4]), exits.init()), want / want.sum(), rtol=1e-14)


def test_losses_beyond_all_powers_leave_weights() -> None:
    exits = gk.aggregation.hedge_weights(2, 0.5, 0.0)
    np.testing.assert_allclose(exits.update(np.array([1e4, 1e4 + 1]), exits.init()), [2 / 3, 1 / 3], rtol=1e-6)


def test_the_aggregator_makes_its_step_with_the_weights_before_these_losses(x64: None) -> None:
    tx: Any = gk.aggregation.hedge(num_tasks=3, discount=0.7, smoothing=0.1)
    exits = gk.aggregation.hedge_weights(3, 0.7, 0.1)
    state, alpha = tx.init(jnp.zeros(3)), exits.init()
    for L in LOSSES:
        u, state = tx.update(jnp.eye(3), state, losses=jnp.asarray(L))
        np.testing.assert_allclose(u, alpha, rtol=1e-15)
        alpha = exits.update(L, alpha)


def test_replicas_have_the_weights_of_the_mean_losses(x64: None) -> None:
    exits = gk.aggregation.hedge_weights(3, 0.7, 0.1, axis_name="data")
    got = jax.vmap(lambda L: exits.update(L, exits.init()), axis_name="data")(jnp.asarray(LOSSES[:2]))
    alone = gk.aggregation.hedge_weights(3, 0.7, 0.1)
    want = alone.update(LOSSES[:2].mean(0), alone.init())
    np.testing.assert_allclose(got, [want, want], rtol=1e-14)


def test_losses_that_are_no_losses_are_refused() -> None:
    exits = gk.aggregation.hedge_weights(2)
    for bad in ([-1.0, 1.0], [np.nan, 1.0]):
        with pytest.raises(ValueError, match="losses must be finite and >= 0"):
            exits.update(np.array(bad), exits.init())
    for how in ({"smoothing": 1.1}, {"discount": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            gk.aggregation.hedge_weights(2, **how)
