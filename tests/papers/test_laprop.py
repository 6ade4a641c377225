"""LaProp (Ziyin, Wang, Ueda, 2020)."""

import jax.numpy as jnp
import numpy as np

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_without_momentum_it_is_corrected_rmsprop(x64: None) -> None:
    gradients = [normal(i, 12) for i in range(5)]
    ours = updates(gk.laprop(0.1, b1=0.0, eps=1e-8), gradients[0], gradients)
    adam = updates(gk.adam(0.1, b1=0.0), gradients[0], gradients)
    for u, a in zip(ours, adam, strict=True):
        assert_equal(u, a)


def test_bounded_whatever_the_momentum(x64: None) -> None:
    """A spike after small gradients, and b1 far above b2, which lets Adam explode."""
    gradients = (
        [1e-6 * normal(i, 12) for i in range(40)] + [1e6 * normal(99, 12)] + [1e-6 * normal(i, 12) for i in range(40)]
    )
    bound = 1 / np.sqrt(1 - 0.5)
    ours = updates(gk.scale_by_laprop(b1=0.99, b2=0.5), gradients[0], gradients)
    adam = updates(gk.scale_by_adam(b1=0.99, b2=0.5), gradients[0], gradients)
    assert max(float(jnp.abs(u).max()) for u in ours) <= bound * (1 + 1e-12)
    assert max(float(jnp.abs(u).max()) for u in adam) > 10 * bound


def test_decay_is_multiplied_by_the_rate(x64: None) -> None:
    x = normal(0, 5)
    assert_equal(updates(gk.laprop(0.1, weight_decay=0.5), x, [0 * x])[0], -0.05 * x)
