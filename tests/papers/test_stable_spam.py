"""Stable-SPAM (Huang et al., 2025)."""

import math

import jax
import jax.numpy as jnp
import numpy as np

import gradkit as gk
from gradkit.optimizers.adaptive.stable_spam import cosine
from tests.golden.translate import ARRAYS
from tests.papers.replay import assert_equal, normal, updates

STACKED = gk.leaves.layout((gk.leaves.by_rank(3), {"stack": (0,)}), default=ARRAYS)


def test_norms_that_stay_the_same_become_one(x64: None) -> None:
    g = [normal(i, 5) for i in range(4)]
    g = [x / jnp.linalg.norm(x) * 3 for x in g]
    for u in updates(gk.adaptive_norm(eps=0.0), g[0], g):
        assert_equal(jnp.linalg.norm(u), 1.0)


def test_the_clip_never_enlarges_and_ends_at_the_limit(x64: None) -> None:
    """Entries below the limit stay; the largest one becomes the limit; a spike of one entry changes only that."""
    gradients = [normal(i, 12) for i in range(5)]
    gradients[4] = gradients[4].at[3].set(500.0)
    mean = 0.0
    got = updates(gk.adaptive_spike_clip(0.9), gradients[0], gradients)
    for t, (u, g) in enumerate(zip(got, gradients, strict=True), 1):
        size, want = np.abs(np.asarray(u)), np.abs(np.asarray(g))
        mean = 0.9 * mean + 0.1 * want.max()
        limit = mean / (1 - 0.9**t)
        assert (size <= want * (1 + 1e-12)).all()
        assert_equal(jnp.asarray(size[want <= limit]), jnp.asarray(want[want <= limit]))
        if want.max() > limit:
            assert_equal(size.max(), limit)
        if t == 5:
            assert (want > limit).sum() == 1


def test_layers_of_a_stack_are_as_if_they_were_leaves(x64: None) -> None:
    gradients = [normal(i, 2, 6, 4) * jnp.asarray([1.0, 9.0**i]).reshape(2, 1, 1) for i in range(4)]
    together, apart = (gk.stable_spam(0.1, gamma3=0.5, reset_every=3, layout=layout) for layout in (STACKED, ARRAYS))
    whole = updates(together, gradients[0], gradients)
    for layer in range(2):
        assert_equal([u[layer] for u in whole], updates(apart, gradients[0][layer], [g[layer] for g in gradients]))


def test_resets_start_the_moments_with_this_gradient_and_leave_the_statistics(x64: None) -> None:
    """At step 3 the direction is that of a first step, of a gradient whose clip and norm know the steps before; the
    official code is off by sqrt(1 - b2) / (1 - b1) there."""
    g = [normal(i, 5) for i in range(4)]
    scaled = gk.adaptive_spike_clip(0.999), gk.adaptive_norm(0.7, 0.9)
    seen = updates(scaled[1], g[0], updates(scaled[0], g[0], g))
    got = updates(gk.stable_spam(1.0, reset_every=3), g[0], g)
    assert_equal(got[:2], updates(gk.adam(1.0), g[0], seen[:2]))
    assert_equal(got[2:], updates(gk.adam(1.0), g[0], seen[2:]))
    assert_equal(updates(gk.stable_spam(1.0, reset_every=0), g[0], g), updates(gk.adam(1.0), g[0], seen))


def test_the_cosine_multiplies_both_decays(x64: None) -> None:
    """By NumPy, where the correction of a step has the decay of that step."""
    g = [np.asarray(normal(i, 5)) for i in range(3)]
    m, v, a, b, mean = np.zeros(5), np.zeros(5), 0.0, 0.0, 0.0
    tx = gk.stable_spam(1.0, total_steps=4, eta_min=0.2, gamma3=0.5)
    got = updates(tx, jnp.asarray(g[0]), [*map(jnp.asarray, g)])
    for t, x in enumerate(g, 1):
        h = 0.2 + 0.8 * (1 + math.cos(math.pi * t / 5)) / 2
        mean = 0.5 * mean + 0.5 * np.abs(x).max()
        limit = mean / (1 - 0.5**t)
        x = np.where(np.abs(x) > limit, x * limit / np.abs(x).max(), x)
        n = np.linalg.norm(x)
        a, b = 0.7 * h * a + (1 - 0.7 * h) * n, 0.9 * b + 0.1 * n**2
        x = x / n * a / (1 - (0.7 * h) ** t) / (np.sqrt(b / (1 - 0.9**t)) + 1e-8)
        m, v = 0.9 * h * m + (1 - 0.9 * h) * x, 0.999 * v + 0.001 * x**2
        want = -m / (1 - (0.9 * h) ** t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        assert_equal(got[t - 1], want, rtol=1e-10)
    assert float(cosine(4, 0.2, 1.0)(jnp.asarray(100))) == 0.2


def test_zeros_and_gradients_that_are_not_finite_do_not_change_the_statistics(x64: None) -> None:
    g = normal(0, 5)
    for bad in (jnp.full(5, jnp.nan), jnp.full(5, jnp.inf)):
        for tx in (gk.adaptive_norm(), gk.adaptive_spike_clip()):
            _, state = tx.update(g, tx.init(g))
            _, after = tx.update(bad, state)
            assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(after))
            assert_equal(jax.tree.leaves(after)[1:], jax.tree.leaves(state)[1:])
    assert_equal(updates(gk.adaptive_norm(), g, [0 * g, g])[0], jnp.zeros(5))
