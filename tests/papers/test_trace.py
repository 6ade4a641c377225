"""Momentum as a link (Sutskever et al., 2013)."""

import jax.numpy as jnp

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_constant_gradient_is_amplified_to_the_geometric_sum(x64: None) -> None:
    g = normal(0, 3)
    got = updates(gk.trace(0.5), g, [g] * 40)
    assert_equal(got[3], (1 + 0.5 + 0.25 + 0.125) * g)
    assert_equal(got[-1], 2 * g, rtol=2.0**-38)


def test_momentum_one_is_the_sum_and_zero_is_nothing(x64: None) -> None:
    gradients = [normal(i, 3) for i in range(4)]
    assert_equal(updates(gk.trace(1.0), gradients[0], gradients)[-1], sum(gradients[1:], gradients[0]))
    assert_equal(updates(gk.trace(0.0), gradients[0], gradients), gradients)


def test_full_dampening_makes_a_mean(x64: None) -> None:
    """With dampening = momentum, the first gradient included, this is the exponential moving average."""
    gradients, m = [normal(i, 3) for i in range(5)], jnp.zeros(3)
    got = updates(gk.trace(0.9, dampening=0.9, dampen_first=True), gradients[0], gradients)
    for g, u in zip(gradients, got, strict=True):
        m = 0.9 * m + 0.1 * g
        assert_equal(u, m)
