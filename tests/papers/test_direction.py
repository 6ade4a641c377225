"""Direction from the gradient around other methods (the variants of Grams' paper)."""

import jax.numpy as jnp
import optax

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_around_lion_it_is_the_sign_of_the_gradient(x64: None) -> None:
    gradients = [normal(i, 20) for i in range(4)]
    got = updates(gk.direction_from_gradient(gk.scale_by_lion()), gradients[0], gradients)
    assert_equal(got, [jnp.sign(g) for g in gradients])


def test_around_momentum(x64: None) -> None:
    gradients, v = [normal(i, 20) for i in range(4)], jnp.zeros(20)
    for g, u in zip(
        gradients, updates(gk.direction_from_gradient(optax.trace(0.9)), gradients[0], gradients), strict=True
    ):
        v = 0.9 * v + g
        assert_equal(u, jnp.sign(g) * jnp.abs(v))
