"""ADOPT (Taniguchi et al., 2024)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_first_step_neither_moves_nor_decays(x64: None) -> None:
    x = normal(0, 8)
    first, second = updates(gk.adopt(0.1, weight_decay=0.5), x, [x, x])
    assert not first.any() and second.all()


def test_second_moment_is_of_the_gradients_before(x64: None) -> None:
    g = jnp.asarray([2.0, -3.0])
    got = updates(gk.scale_by_adopt(b1=0.0, b2=0.5, clip_exponent=None), g, [g, 10 * g, g])
    assert_equal(got[1], 10 * jnp.sign(g))
    assert_equal(got[2], jnp.sign(g) / np.sqrt((1 + 100) / 2))


def test_bound_counts_earlier_steps(x64: None) -> None:
    """A gradient a thousand times as large in every step has the bound itself, 1, 2^(1/4), 3^(1/4)."""
    g = jnp.ones(3)
    got = updates(gk.scale_by_adopt(b1=0.0, b2=0.0), g, [g * 1000.0**k for k in range(4)])
    for earlier, u in enumerate(got):
        assert_equal(u, jnp.full(3, earlier**0.25))


def test_eps_is_a_floor_and_not_added(x64: None) -> None:
    g = jnp.asarray([1.0, 1e-3])
    assert_equal(updates(gk.scale_by_adopt(b1=0.0, eps=0.1), g, [g, g])[1], jnp.asarray([1.0, 1e-2]))


def test_like_optax_without_decay(x64: None) -> None:
    gradients = [normal(i, 12) for i in range(5)]
    peer = optax.contrib.adopt(0.1, b1=0.8, b2=0.9)
    state = peer.init(gradients[0])
    for g, ours in zip(gradients, updates(gk.adopt(0.1, b1=0.8, b2=0.9), gradients[0], gradients), strict=True):
        with jax.numpy_dtype_promotion("standard"):
            theirs, state = peer.update(g, state, g)
        assert_equal(ours, theirs)
