"""Mechanic (Cutkosky, Defazio, Mehta, 2023)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, descend, normal, updates


@pytest.mark.parametrize("store_delta", [True, False])
def test_the_algorithm_in_numpy(store_delta: bool, x64: None) -> None:
    x, grads, betas, s_init = (
        np.asarray(normal(0, 5)),
        [np.asarray(normal(t, 5)) for t in range(1, 9)],
        (0.9, 0.999),
        0.1,
    )
    tx = gk.mechanic(optax.sgd(0.3), betas=betas, s_init=s_init, s_decay=0.2, eps=1e-6, store_delta=store_delta)
    got = updates(tx, jnp.asarray(x), [*map(jnp.asarray, grads)])
    start, beta, delta = x, np.array(betas), np.zeros(5)
    s, v, r, m = np.zeros(2), np.zeros(2), np.zeros(2), np.full(2, 1e-6)
    for u, g in zip(got, grads, strict=True):
        if not store_delta:
            delta = (x - start) / (s.sum() + 1e-6)
        step = -0.3 * g
        ahead = x + step
        h = delta @ (g + 0.2 * s.sum() * np.linalg.norm(g) / (np.linalg.norm(ahead) + 1e-6) * ahead)
        delta = delta + step
        m, v = np.maximum(beta * m, abs(h)), beta**2 * v + h**2
        r = np.maximum(0, beta * r - s * h)
        s = (m * s_init / 2 + r) / (np.sqrt(v) + 1e-6)
        new = start + delta * max(s.sum(), 0)
        assert_equal(u, new - x, rtol=1e-11)
        x = new


def test_a_larger_rate_is_a_larger_first_scale_and_nothing_else(x64: None) -> None:
    """With c times the rate h is c times as large and s a c-th: the same trajectory from a c-th of s_init. What s_init
    was is forgotten as fast as a fortune grows."""
    x, curvature = normal(0, 5), jnp.linspace(0.1, 3.0, 5)

    def end(rate: float, s_init: float) -> Any:
        tx = gk.mechanic(optax.sgd(rate), s_init=s_init, s_decay=0.0, eps=1e-12)
        return descend(tx, x, lambda x: curvature * x, 30)

    slow, fast = end(1.0, 1e-9), end(1e3, 1e-12)
    assert float(jnp.abs(slow[-1] - x).max()) > 1e-2
    # eps beside |h|, which is above 1e-3 of the first rate: 1e-9 in every step.
    assert_equal(slow, fast, rtol=1e-7)


def test_without_a_first_scale_nothing_moves(x64: None) -> None:
    x, grads = normal(0, 4), [normal(t, 4) for t in range(1, 6)]
    assert_equal(updates(gk.mechanic(gk.adam(0.1), s_init=0.0), x, grads), [0 * x] * 5, rtol=0, atol=0)


def test_with_one_beta_of_one_it_bets_on_a_coin(x64: None) -> None:
    """One dimension, unit gradients to one side, no decay: r collects s |h|, and the scale grows like a fortune."""
    tx, x = gk.mechanic(optax.sgd(1.0), betas=(1.0,), s_init=0.1, s_decay=0.0), jnp.zeros(1)
    state, s, found = tx.init(x), 0.0, []
    delta, r, m, v = 0.0, 0.0, 1e-6, 0.0
    for _ in range(8):
        u, state = tx.update(jnp.ones(1), state, x)
        x = x + u
        h = delta
        delta -= 1.0
        m, v, r = max(m, abs(h)), v + h**2, max(0.0, r - s * h)
        s = (m * 0.1 + r) / (np.sqrt(v) + 1e-8)
        found.append((float(gk.diagnostics.metrics(state)["mechanic_scale"]), s))
    got, want = np.array(found).T
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert (np.diff(got[2:]) > 0).all()


def test_betas_are_numbers_of_the_unit_interval() -> None:
    for betas, words in (((), "betas must be"), (0.9, "betas must be"), ((0.9, 1.5), r"betas\[1\] must be in")):
        with pytest.raises(ValueError, match=words):
            gk.mechanic(optax.sgd(0.1), betas=betas)  # pyrefly: ignore[bad-argument-type]
