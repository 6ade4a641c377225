"""COCOB (Orabona, Tommasi, 2017)."""

import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_the_algorithm_in_numpy(x64: None) -> None:
    x, alpha = np.asarray(normal(0, 5)), 3.0
    grads = [np.asarray(normal(t, 5)) for t in range(1, 10)]
    got = updates(gk.cocob(alpha=alpha), jnp.asarray(x), [*map(jnp.asarray, grads)])
    start, L, G, R, theta = x, np.full(5, 1e-8), 0.0, 0.0, 0.0
    for u, g in zip(got, grads, strict=True):
        L, G = np.maximum(L, np.abs(g)), G + np.abs(g)
        R, theta = np.maximum(R - g * (x - start), 0), theta - g
        new = start + theta / (L * np.maximum(G + L, alpha * L)) * (L + R)
        assert_equal(u, new - x)
        x = new
    assert (alpha * L < G + L).any()


def test_every_entry_has_a_scale_of_its_own(x64: None) -> None:
    """A factor of the gradient, another in every entry, changes nothing but what eps is beside it."""
    x, grads, scale = normal(0, 4), [normal(t, 4) for t in range(1, 7)], jnp.array([1e-3, 1.0, 10.0, 1e6])
    tx = gk.cocob(eps=1e-12)
    got, scaled = (updates(tx, x, [s * g for g in grads]) for s in (jnp.ones(4), scale))
    assert_equal(got, scaled, rtol=1e-10)


def test_a_schedule_acts_on_the_step(x64: None) -> None:
    """`optax.contrib.cocob` multiplies the gradient, so that a rate of a tenth changes nothing."""
    x, g = normal(0, 4), normal(1, 4)
    whole, tenth = (updates(gk.cocob(rate), x, [g])[0] for rate in (1.0, 0.1))
    assert_equal(tenth, 0.1 * whole)
    assert_equal(updates(gk.cocob(optax.linear_schedule(0.0, 1.0, 2)), x, [g])[0], 0 * x, rtol=0, atol=0)


def test_a_coin_that_always_shows_one_side_makes_rich(x64: None) -> None:
    """With constant gradients the steps grow: the reward is bet again."""
    x, g = jnp.zeros(1), jnp.ones(1)
    got = np.asarray(updates(gk.cocob(alpha=2.0), x, [g] * 12))[:, 0]
    assert (got < 0).all() and (np.diff(got[2:]) < 0).all()
