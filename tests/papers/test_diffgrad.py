"""diffGrad (Dubey et al., 2019)."""

import jax
import jax.numpy as jnp

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_constant_gradient_is_half_of_adam_from_the_second_step(x64: None) -> None:
    g = normal(0, 10)
    ours, adam = (updates(tx, g, [g] * 5) for tx in (gk.diffgrad(0.1), gk.adam(0.1)))
    assert_equal(ours[0], jax.nn.sigmoid(jnp.abs(g)) * adam[0])
    assert_equal(ours[1:], [0.5 * u for u in adam[1:]])


def test_jumping_gradient_is_adam(x64: None) -> None:
    """exp(-100) is nothing beside 1."""
    g = [(-1) ** t * 100 * (1 + jnp.abs(normal(t, 10))) for t in range(5)]
    assert_equal(updates(gk.diffgrad(0.1), g[0], g), updates(gk.adam(0.1), g[0], g))


def test_friction_is_of_the_penalised_gradient(x64: None) -> None:
    """With l2 the difference of gradients contains the change of the parameters, here its only part."""
    x, g, l2 = normal(1, 6), normal(0, 6), 0.5
    first, second = updates(gk.diffgrad(0.1, l2=l2), x, [g, g])
    before, after = g + l2 * x, g + l2 * (x + first)
    adam = updates(gk.adam(0.1), x, [before, after])
    assert_equal(second, jax.nn.sigmoid(jnp.abs(after - before)) * adam[1])


def test_friction_of_any_direction(x64: None) -> None:
    g = [normal(i, 6) for i in range(3)]
    got = updates(gk.scale_by_gradient_change(gk.trace(0.9)), g[0], g)
    momentum = updates(gk.trace(0.9), g[0], g)
    for u, m, before, now in zip(got, momentum, [0 * g[0], *g], g, strict=False):
        assert_equal(u, jax.nn.sigmoid(jnp.abs(before - now)) * m)
