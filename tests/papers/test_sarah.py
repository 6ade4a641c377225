"""SARAH (Nguyen et al., 2017)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.optimizers.variance_reduction.sarah import sarah_estimator

RNG = np.random.default_rng(0)
A, y = RNG.standard_normal((6, 3)), RNG.standard_normal(6)


def of_rows(w, rows):
    return jnp.asarray(A)[rows].T @ (jnp.asarray(A)[rows] @ w - jnp.asarray(y)[rows]) / len(rows)


def test_the_recursion_of_the_paper(x64):
    """Ten steps with a refresh in the middle, against NumPy."""
    tx = optax.chain(sarah_estimator(), gk.sgd(0.05))
    w, batches = jnp.zeros(3), RNG.integers(0, 6, (10, 2))
    state = tx.init(w)

    @jax.jit
    def step(w, state, rows, refresh):
        grad_fn = lambda w: of_rows(w, rows)  # noqa: E731
        g = jax.lax.cond(refresh, lambda: of_rows(w, jnp.arange(6)), lambda: grad_fn(w))
        u, state = tx.update(g, state, w, grad_fn=grad_fn, refresh=refresh)
        return w + u, state

    def gradient(w, rows):
        return A[rows].T @ (A[rows] @ w - y[rows]) / len(rows)

    mine, before, v = np.zeros(3), None, None
    for t, rows in enumerate(batches):
        fresh = t in (0, 5)
        w, state = step(w, state, jnp.asarray(rows), jnp.asarray(fresh))
        v = gradient(mine, np.arange(6)) if fresh else gradient(mine, rows) - gradient(before, rows) + v
        before, mine = mine, mine - 0.05 * v
        np.testing.assert_allclose(w, mine, rtol=1e-11)


def test_with_the_loss_of_all_data_as_every_batch_it_is_the_exact_gradient(x64):
    tx, w = sarah_estimator(), jnp.ones(3)
    state, full = tx.init(w), lambda w: of_rows(w, jnp.arange(6))
    for _ in range(4):
        v, state = tx.update(full(w), state, w, grad_fn=full, refresh=False)
        np.testing.assert_allclose(np.asarray(v), full(w), rtol=1e-12)
        w = w - 0.1 * v


def test_what_it_needs_is_asked_for():
    tx, w = sarah_estimator(), jnp.ones(2)
    with pytest.raises(ValueError, match="refresh"):
        tx.update(w, tx.init(w), w, grad_fn=lambda w: w)
