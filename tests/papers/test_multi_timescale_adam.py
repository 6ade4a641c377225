"""MT-DAO's update rule (Iacob et al., 2025)."""

import math

import jax.numpy as jnp
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_no_weights_are_gradient_descent_and_rmsprop(x64: None) -> None:
    g, v = [normal(i, 5) for i in range(4)], 0.0
    assert_equal(updates(gk.scale_by_multi_momentum((0.9,), weights=(0.0,)), g[0], g), g)
    got = updates(gk.multi_timescale_adam(0.1, b1s=(0.9,), weights=(0.0,), b2=0.9), g[0], g)
    for x, u in zip(g, got, strict=True):
        v = 0.9 * v + 0.1 * x**2
        assert_equal(u, -0.1 * x / (jnp.sqrt(v) + 1e-8))


def test_one_timescale_is_qhadam(x64: None) -> None:
    g = [normal(i, 5) for i in range(6)]
    got = updates(gk.multi_timescale_adam(0.1, b1s=(0.9,), weights=(0.7,), b2=0.99, bias_correction=True), g[0], g)
    assert_equal(got, updates(gk.qhadam(0.1, b1=0.9, nu1=0.7, b2=0.99), g[0], g))


def test_momenta_are_separate_and_weighted(x64: None) -> None:
    g, b1s, weights = [normal(i, 5) for i in range(5)], (0.5, 0.9, 0.99), (0.2, 0.3, 0.1)
    tx, u = gk.scale_by_multi_momentum(b1s, weights=weights), [0.0, 0.0, 0.0]
    state = tx.init(g[0])
    for x in g:
        got, state = tx.update(x, state)
        u = [b * m + (1 - b) * x for b, m in zip(b1s, u, strict=True)]
        assert_equal(got, 0.4 * x + 0.2 * u[0] + 0.3 * u[1] + 0.1 * u[2])
    assert_equal(state.momenta, tuple(u))


def test_half_of_a_momentum_is_forgotten_in_its_half_life(x64: None) -> None:
    """ln(1/2) / ln(b): 6.6 steps for 0.9, 693 for 0.999. What is left after one gradient and n zeros is b^n."""
    for b, half_life in ((0.9, 6.6), (0.999, 693)):
        assert math.log(0.5) / math.log(b) == pytest.approx(half_life, rel=0.005)
    one = jnp.ones(())
    out = updates(gk.scale_by_multi_momentum((0.9,), weights=(1.0,)), one, [one, *[0 * one] * 7])
    assert out[6] / out[0] > 0.5 > out[7] / out[0]


def test_any_denominator(x64: None) -> None:
    """A denominator of our own: twice the size of the gradient, plus one."""
    twice = optax.stateless(lambda g, _: 2 * jnp.abs(g) + 1)
    g = normal(0, 5)
    (u,) = updates(gk.scale_by_multi_momentum((0.5,), weights=(0.5,), denominator=twice), g, [g])
    assert_equal(u, 0.75 * g / (2 * jnp.abs(g) + 1))


def test_weights_may_be_schedules(x64: None) -> None:
    """The gradient has what the weights leave at each step."""
    g = [normal(i, 3) for i in range(2)]
    weight = lambda step: jnp.asarray([0.0, 0.5])[step]  # noqa: E731
    got = updates(gk.scale_by_multi_momentum((0.5,), weights=(weight,)), g[0], g)
    assert_equal(got, [g[0], 0.5 * g[1] + 0.5 * (0.25 * g[0] + 0.5 * g[1])])


@pytest.mark.parametrize(
    ("b1s", "weights", "message"),
    [
        ((0.9, 0.99), (0.5,), "weights must be as many as b1s"),
        ((0.9, 0.99), (0.5, 0.6), "weights must add up to at most 1"),
        ((0.9, 1.0), (0.5, 0.2), r"b1s\[1\] must be in \[0, 1\)"),
        ((0.9,), (math.nan,), r"weights\[0\] must be in \[0, 1\]"),
        ((0.9,), (-0.1,), r"weights\[0\] must be in \[0, 1\]"),
    ],
)
def test_bad_timescales_are_refused(b1s: tuple, weights: tuple, message: str) -> None:
    for function in (gk.scale_by_multi_momentum, lambda b1s, **kw: gk.multi_timescale_adam(0.1, b1s=b1s, **kw)):
        with pytest.raises(ValueError, match=message):
            function(b1s, weights=weights)
    gk.scale_by_multi_momentum((0.9,) * 10, weights=(0.1,) * 10)  # 1, but for roundings
