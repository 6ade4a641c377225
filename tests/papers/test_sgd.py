"""SGD and momentum (Ruder, 2016; Polyak, 1964)."""

import jax.numpy as jnp
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, descend, normal, updates


def test_without_momentum(x64: None) -> None:
    g = normal(0, 5)
    assert_equal(updates(gk.sgd(0.3), g, [g, g])[1], -0.3 * g)


@pytest.mark.parametrize("nesterov", [False, True])
def test_equals_optax(nesterov: bool, x64: None) -> None:
    gradients = [normal(i, 5) for i in range(6)]
    mine, theirs = (f(0.1, momentum=0.8, nesterov=nesterov) for f in (gk.sgd, optax.sgd))
    assert_equal(updates(mine, gradients[0], gradients), updates(theirs, gradients[0], gradients))


@pytest.mark.parametrize("nesterov", [False, True])
def test_rate_inside_and_outside_agree_while_it_is_constant(nesterov: bool, x64: None) -> None:
    gradients = [normal(i, 5) for i in range(6)]
    inside = gk.momentum(0.1, momentum=0.8, nesterov=nesterov)
    outside = gk.sgd(0.1, momentum=0.8, nesterov=nesterov)
    assert_equal(updates(inside, gradients[0], gradients), updates(outside, gradients[0], gradients))


def test_rate_inside_acts_on_new_gradients_only(x64: None) -> None:
    """After the learning rate falls to 0 the classical form goes on moving; the other stops at once."""
    rate = lambda step: jnp.where(step == 0, 0.1, 0.0)  # noqa: E731
    g = normal(0, 5)
    assert_equal(updates(gk.momentum(rate, momentum=0.8), g, [g, g])[1], -0.08 * g)
    assert_equal(updates(gk.sgd(rate, momentum=0.8), g, [g, g])[1], 0 * g)


def test_dampening_leaves_out_the_first_gradient(x64: None) -> None:
    g = normal(0, 5)
    first, second = updates(gk.sgd(1.0, momentum=0.9, dampening=0.4), g, [g, g])
    assert_equal(first, -g)
    assert_equal(second, -(0.9 + 0.6) * g)


def test_optimal_heavy_ball_contracts_at_its_rate(x64: None) -> None:
    """On a quadratic with curvatures in [l, L] Polyak's constants contract by (sqrt L - sqrt l)/(sqrt L + sqrt l)."""
    small, large = 1.0, 100.0
    curvature = jnp.array([small, 30.0, large])
    root = (jnp.sqrt(large) - jnp.sqrt(small)) / (jnp.sqrt(large) + jnp.sqrt(small))
    rate = float((2 / (jnp.sqrt(large) + jnp.sqrt(small))) ** 2)
    x = descend(gk.sgd(rate, momentum=float(root**2)), jnp.ones(3), lambda x: curvature * x, 120)
    # the error is root^t times a polynomial of degree 1 in t
    assert jnp.abs(x[-1]).max() < 2 * 120 * root**120


def test_penalty_is_part_of_the_gradient(x64: None) -> None:
    x, g = normal(0, 5), normal(1, 5)
    assert_equal(updates(gk.sgd(0.1, weight_decay=0.2), x, [g])[0], -0.1 * (g + 0.2 * x))


def test_refuses_arguments_without_effect() -> None:
    with pytest.raises(ValueError, match=r"momentum must be in \(0, 1\] with nesterov=True"):
        gk.sgd(0.1, nesterov=True)
    with pytest.raises(ValueError, match="dampening must be 0 without momentum"):
        gk.sgd(0.1, dampening=0.5)


def test_nag_takes_the_gradient_ahead(x64: None) -> None:
    """v = decay v + rate_t grad(x - decay v), x = x - v, under a rate that changes; the user holds x - decay v."""
    rate = lambda step: 0.1 / (1 + step.astype(float))  # noqa: E731
    gradient = lambda x: jnp.tanh(x) + 0.5 * x  # noqa: E731
    tx = gk.nag(rate, momentum=0.8)
    x, v = normal(0, 5), jnp.zeros(5)
    y, state = x, tx.init(x)
    for t in range(8):
        u, state = tx.update(gradient(y), state, y)
        y = y + u
        v = 0.8 * v + 0.1 / (1 + t) * gradient(x - 0.8 * v)
        x = x - v
        assert_equal(gk.eval_params(state, y), x)
        assert_equal(y, x - 0.8 * v)


def test_nag_is_nesterovs_momentum_at_the_shifted_points(x64: None) -> None:
    gradients = [normal(i, 5) for i in range(6)]
    nesterov = gk.momentum(0.1, momentum=0.8, nesterov=True)
    want = updates(nesterov, gradients[0], gradients)
    assert_equal(updates(gk.nag(0.1, momentum=0.8), gradients[0], gradients), want)
