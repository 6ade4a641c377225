"""Momentum correction (Goyal et al., 2017)."""

import jax.numpy as jnp
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates

RATES = [0.1, 0.3, 0.3, 0.03, 0.5]


def schedule(rates: list[float]):
    return lambda count: jnp.asarray(rates)[count]


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_buffer_is_rescaled_as_the_rate_changes(nesterov: bool, x64: None) -> None:
    """The form of the paper, with v in units of the parameters; and the form with the rate outside."""
    gradients, m = [normal(i, 4) for i in range(5)], 0.8
    got = updates(gk.correct_momentum(schedule(RATES), momentum=m, nesterov=nesterov), gradients[0], gradients)
    v, before = jnp.zeros(4), RATES[0]
    for rate, g, u in zip(RATES, gradients, got, strict=True):
        v = m * rate / before * v + rate * g
        before = rate
        assert_equal(u, -(m * v + rate * g) if nesterov else -v)
    assert_equal(got, updates(gk.sgd(schedule(RATES), momentum=m, nesterov=nesterov), gradients[0], gradients))


def test_without_correction_it_is_another_method(x64: None) -> None:
    gradients = [normal(i, 4) for i in range(3)]
    plain = updates(gk.momentum(schedule(RATES)), gradients[0], gradients)
    own = updates(gk.correct_momentum(schedule(RATES)), gradients[0], gradients)
    assert_equal(plain[0], own[0])
    assert_equal(own[1] - plain[1], -0.9 * (RATES[1] - RATES[0]) * gradients[0])


def test_a_learning_rate_of_zero_loses_no_gradient(x64: None) -> None:
    """The form of the paper has 0 / 0 there; the gradients of these steps are in the momentum."""
    g = normal(0, 4)
    got = updates(gk.correct_momentum(schedule([0.0, 0.0, 0.5]), momentum=0.5), g, [g] * 3)
    assert_equal(got, [0 * g, 0 * g, -0.5 * 1.75 * g])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="momentum must be in"):
        gk.correct_momentum(0.1, momentum=1.5)
    with pytest.raises(ValueError, match="learning_rate must be in"):
        gk.correct_momentum(-0.1)
