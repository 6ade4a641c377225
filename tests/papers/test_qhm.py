"""Quasi-hyperbolic momentum (Ma, Yarats, 2018)."""

import jax.numpy as jnp
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates

GRADIENTS = [(5, i) for i in range(6)]


def gradients() -> list:
    return [normal(i, n) for n, i in GRADIENTS]


def test_no_weight_is_gradient_descent(x64: None) -> None:
    g = gradients()
    assert_equal(updates(gk.qhm(0.3, nu=0.0), g[0], g), updates(gk.sgd(0.3), g[0], g))


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_and_nesterov_at_a_damped_rate(nesterov: bool, x64: None) -> None:
    """nu = 1 is momentum, nu = b1 Nesterov's, both with the rate divided by 1 - b1."""
    g, b1 = gradients(), 0.8
    got = updates(gk.qhm(0.5, b1=b1, nu=b1 if nesterov else 1.0), g[0], g)
    assert_equal(got, updates(gk.sgd(0.5 * (1 - b1), momentum=b1, nesterov=nesterov), g[0], g))


def test_qhadam_with_weights_of_one_is_adam(x64: None) -> None:
    g = gradients()
    got = updates(gk.qhadam(0.1, b1=0.9, b2=0.99, nu1=1.0, nu2=1.0, eps=1e-3, weight_decay=0.2), g[0], g)
    assert_equal(got, updates(gk.adamw(0.1, b1=0.9, b2=0.99, eps=1e-3, weight_decay=0.2), g[0], g))


def test_qhadam_without_moments_is_the_sign(x64: None) -> None:
    g = gradients()
    got = updates(gk.qhadam(0.1, nu1=0.0, nu2=0.0, eps=0.0), g[0], g)
    assert_equal(got, [-0.1 * jnp.sign(x) for x in g])


def test_qhadam_against_its_running_weights(x64: None) -> None:
    """The official form of the bias correction: w <- 1 + b w, a mean that moves by 1 / w."""
    g, (b1, b2, nu1, nu2) = gradients(), (0.9, 0.95, 0.6, 0.8)
    m, v, w1, w2 = 0.0, 0.0, 0.0, 0.0
    got = updates(gk.scale_by_qhadam(b1=b1, b2=b2, nu1=nu1, nu2=nu2, eps=1e-2), g[0], g)
    for x, u in zip(g, got, strict=True):
        w1, w2 = 1 + b1 * w1, 1 + b2 * w2
        m, v = m + (x - m) / w1, v + (x**2 - v) / w2
        assert_equal(u, ((1 - nu1) * x + nu1 * m) / (jnp.sqrt((1 - nu2) * x**2 + nu2 * v) + 1e-2))


def test_a_penalty_goes_through_the_momentum_and_decay_does_not(x64: None) -> None:
    x = normal(3, 4)
    (penalised,) = updates(gk.qhm(0.1, b1=0.9, nu=1.0, l2=0.5), x, [0 * x])
    (decayed,) = updates(gk.qhm(0.1, b1=0.9, nu=1.0, weight_decay=0.5), x, [0 * x])
    assert_equal(penalised, -0.1 * 0.1 * 0.5 * x)
    assert_equal(decayed, -0.1 * 0.5 * x)
