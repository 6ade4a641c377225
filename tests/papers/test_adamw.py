"""Decoupled weight decay (Loshchilov, Hutter, 2017)."""

import jax.numpy as jnp
import optax

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_decay_shrinks_whatever_the_gradient(x64: None) -> None:
    x, g = normal(0, 9), 1e6 * normal(1, 9)
    decayed = updates(gk.adamw(0.1, weight_decay=0.3), x, [g])[0]
    assert_equal(decayed - updates(gk.adam(0.1), x, [g])[0], -0.1 * 0.3 * x, atol=1e-12)


def test_without_decay_it_is_adam(x64: None) -> None:
    gradients = [normal(i, 4) for i in range(4)]
    assert_equal(
        updates(gk.adamw(0.1, weight_decay=0.0), gradients[0], gradients),
        updates(gk.adam(0.1), gradients[0], gradients),
    )


def test_coupled_decay_is_another_method(x64: None) -> None:
    """With the penalty in the gradient, Adam's first step is the sign of the sum: the decay's size is lost."""
    x, g = normal(0, 9), normal(1, 9)
    coupled = updates(optax.chain(gk.add_decayed_weights(0.3), gk.adam(0.1, eps=0.0)), x, [g])[0]
    assert_equal(coupled, -0.1 * jnp.sign(g + 0.3 * x))


def test_mask_and_schedule(x64: None) -> None:
    x = {"bias": normal(0, 3), "kernel": normal(1, 3, 3)}
    zero = {"bias": jnp.zeros(3), "kernel": jnp.zeros((3, 3))}
    tx = gk.adamw(0.5, weight_decay=lambda step: jnp.where(step == 0, 0.1, 0.2), weight_decay_mask=gk.leaves.by_rank(2))
    first, second = updates(tx, x, [zero, zero])
    assert_equal(first, {"bias": zero["bias"], "kernel": -0.05 * x["kernel"]})
    assert_equal(second, {"bias": zero["bias"], "kernel": -0.1 * 0.95 * x["kernel"]})
