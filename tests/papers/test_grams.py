"""Grams (Cao, Li, Song, 2024)."""

import jax.numpy as jnp

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_size_of_adam_and_sign_of_the_gradient(x64: None) -> None:
    gradients = [normal(i, 40) for i in range(8)]
    ours = updates(gk.grams(0.1, eps=1e-8), gradients[0], gradients)
    adam = updates(gk.adam(0.1), gradients[0], gradients)
    for g, u, a in zip(gradients, ours, adam, strict=True):
        assert_equal(jnp.abs(u), jnp.abs(a))
        assert jnp.all(u * g <= 0)  # never uphill, coordinate by coordinate
        assert_equal(jnp.vdot(-u, g), jnp.vdot(jnp.abs(u), jnp.abs(g)))
    assert any(jnp.any(u * a < 0) for u, a in zip(ours, adam, strict=True))  # Adam is, at times


def test_constant_gradient_is_adam(x64: None) -> None:
    g = normal(0, 10)
    assert_equal(updates(gk.grams(0.1, eps=1e-8), g, [g] * 5), updates(gk.adam(0.1), g, [g] * 5))


def test_no_gradient_no_move(x64: None) -> None:
    g = normal(0, 10)
    assert not updates(gk.grams(0.1), g, [g, 0 * g])[1].any()
