"""Gradient descent with large steps as a perceptron (Tyurin, 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal


def separable() -> tuple[jax.Array, float]:
    """The points y_i a_i of data with a margin, and the perceptron's bound (R / margin)^2."""
    w = np.array([0.6, 0.8, 0.0])
    a = np.asarray(normal(1, 60, 3))
    z = a * np.sign(a @ w)[:, None]
    z = z[z @ w > 0.2]
    return jnp.asarray(z), float((np.linalg.norm(z, axis=1).max() / (z @ w).min()) ** 2)


def steps_to_separate(z: jax.Array, tx: Any, limit: int) -> int:
    theta = jnp.zeros(3)
    state = tx.init(theta)

    def step(theta: jax.Array, state: Any) -> Any:
        p = jax.nn.sigmoid(-(z @ theta))
        u, state = tx.update(-(p @ z) / len(z), state, theta, slope=jnp.mean(p))
        return theta + u, state

    step = jax.jit(step)
    for t in range(limit):
        if bool((z @ theta > 0).all()):
            return t
        theta, state = step(theta, state)
    return limit


@pytest.mark.parametrize("rate", [1e-2, 1.0, 1e6])
def test_any_rate_separates(rate: float, x64: None) -> None:
    """A perceptron's steps with convex combinations of the points: at most (R / margin)^2 for large rates; a small one
    needs as many more as its steps are longer than a slope of the loss allows."""
    z, bound = separable()
    assert steps_to_separate(z, gk.normalized_logistic(rate), int(2 * bound) + 2) <= 2 * bound


def test_a_huge_rate_is_the_batch_perceptron(x64: None) -> None:
    """The mean of the points that are wrong, each as much as any other."""
    z, _ = separable()
    theta = 1e6 * jnp.array([1.0, -1.0, 0.5])
    p = jax.nn.sigmoid(-(z @ theta))
    tx = gk.normalized_logistic(1.0)
    u, _ = tx.update(-(p @ z) / len(z), tx.init(theta), theta, slope=jnp.mean(p))
    wrong = np.asarray(z)[np.asarray(z @ theta) < 0]
    assert 0 < len(wrong) < len(z)
    assert_equal(u, wrong.mean(0))


def test_the_direction_is_a_convex_combination(x64: None) -> None:
    z, _ = separable()
    theta = normal(5, 3)
    p = np.asarray(jax.nn.sigmoid(-(z @ theta)))
    tx = gk.scale_by_inverse_slope()
    u, _ = tx.update(jnp.asarray(-(p @ np.asarray(z)) / len(z)), tx.init(theta), theta, slope=jnp.mean(p))
    assert_equal(u, -(p / p.sum()) @ np.asarray(z))


def test_no_slope_is_no_step() -> None:
    tx = gk.normalized_logistic(1.0)
    x = jnp.ones(2)
    assert_equal(tx.update(0 * x, tx.init(x), x, slope=0.0)[0], 0 * x, rtol=0, atol=0)
    with pytest.raises(ValueError, match="scale_by_inverse_slope needs the extra argument slope"):
        tx.update(x, tx.init(x), x)
    with pytest.raises(ValueError, match="slope must be one number"):
        tx.update(x, tx.init(x), x, slope=x)
