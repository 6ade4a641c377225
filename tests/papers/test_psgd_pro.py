"""PSGD Kron with the Procrustes step (Li, 2024; PSGDPro)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.linalg.procrustes import spectral_norm, towards_symmetric
from tests.papers.replay import assert_equal, normal
from tests.papers.test_normuon import directions

STILL: dict[str, Any] = {"damping": 0.0, "norm": "exact"}


def test_the_algorithm(x64: None) -> None:
    """In NumPy, on a 3 x 4 matrix."""
    g, m, Q, L = [np.asarray(normal(i, 3, 4)) for i in range(5)], 0.0, [np.eye(3), np.eye(4)], [1.0, 1.0]
    got = directions(gk.scale_by_psgd_pro(b1=0.8, precond_warmup=2, **STILL), [normal(i, 3, 4) for i in range(5)])
    for t, x in enumerate(g):
        m = 0.8 * m + 0.2 * x
        rate = max(0.1 / np.sqrt(1 + t / 2), 0.01)
        P = Q[0].T @ Q[0] @ m @ Q[1].T @ Q[1]
        for i, C in enumerate((P @ P.T, P.T @ P)):
            z = 12 / len(C)
            size = np.linalg.norm(C, 2) + z
            L[i] = max(0.9 * L[i] + 0.1 * size, size)
            q = Q[i] - rate / L[i] * (C @ Q[i] - z * Q[i])
            R = (q.T - q) / max(np.linalg.norm(q.T - q, 2), 1e-8)
            A = R @ q
            B = R @ A
            a = np.clip(-np.trace(A) / np.trace(B), 0, 0.125) if np.trace(B) < 0 else 0.125
            Q[i] = q + a * (A + a * B / 2)
        largest = [np.abs(q).max() for q in Q]
        Q = [q * np.sqrt(largest[0] * largest[1]) / s for q, s in zip(Q, largest, strict=True)]
        assert_equal(got[t], Q[0].T @ Q[0] @ m @ Q[1].T @ Q[1], 1e-9, 1e-10)


def test_gaussian_gradients_are_whitened_whatever_their_size(x64: None) -> None:
    """G = A Z B: E[P P^T] = z I at the stationary point."""
    rng = np.random.default_rng(0)
    A, B = (np.eye(d) + 0.3 * rng.standard_normal((d, d)) for d in (3, 4))
    G = jnp.asarray(A @ rng.standard_normal((3000, 3, 4)) @ B)
    tx = gk.scale_by_psgd_pro(b1=0.0, **STILL)

    @jax.jit
    def run(G: jax.Array) -> jax.Array:
        def step(state: Any, g: jax.Array) -> Any:
            u, state = tx.update(g, state)
            return state, u

        return jax.lax.scan(step, tx.init(G[0]), G)[1]

    for size in (1.0, 100.0):
        late = np.asarray(run(size * G))[1500:]
        # 1500 draws, and factors that move by a few percent around their limit.
        assert abs(np.mean(late @ np.swapaxes(late, 1, 2), axis=0) / 4 - np.eye(3)).max() < 0.25


def test_factors_are_turned_towards_symmetric_ones(x64: None) -> None:
    """By a rotation, up to the third order; |Q - Q^T| falls in every turn."""
    Q = jnp.asarray(np.eye(5)) + 0.1 * normal(0, 5, 5)
    turn = jax.jit(lambda Q: towards_symmetric(Q, "exact"))
    for _ in range(5):
        new = turn(Q)
        assert float(jnp.linalg.norm(new - new.T)) < float(jnp.linalg.norm(Q - Q.T))
        # a^6 / 72 of a = 1/8 at most, and |R| = 1: the Gram matrix moves by a^4 / 4 at most.
        np.testing.assert_allclose(new.T @ new, Q.T @ Q, atol=0.125**4 / 4 * float(jnp.linalg.norm(Q)) ** 2)
        Q = new


def test_the_bound_is_one_and_near(x64: None) -> None:
    a = np.asarray(normal(0, 20, 20))
    for A in (a @ a.T, a - a.T):
        exact = np.linalg.norm(A, 2)
        got = float(spectral_norm(jnp.asarray(A), "bound", jax.random.key(0)))
        assert 0.8 * exact < got <= exact * (1 + 1e-12)
    assert not float(spectral_norm(jnp.zeros((3, 3)), "bound", jax.random.key(0)))


def test_vectors_clips_zeros_and_bad_input() -> None:
    state = jax.eval_shape(gk.scale_by_psgd_pro(max_dim=4, key=0).init, {"a": jnp.ones((3, 6)), "b": jnp.ones(5)})
    assert state.Q["a"]["1"].shape == (6, 1) and state.Q["b"]["0"].shape == (5, 1)
    assert np.isfinite(directions(gk.scale_by_psgd_pro(key=0), [jnp.zeros((3, 4))] * 3)).all()
    clipped = directions(gk.scale_by_psgd_pro(update_clip=0.1, b1=0.0, **STILL), [normal(0, 3, 4)])[0]
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(clipped))), 0.1, rtol=1e-5)
    with pytest.raises(ValueError, match="key"):
        directions(gk.scale_by_psgd_pro(), [jnp.ones((3, 4))])
    for options, message in (
        ({"norm": "spectral"}, "norm must be one of"),
        ({"damping": -1.0}, "damping must be"),
        ({"beta_lip": 1.0}, "beta_lip must be"),
        ({"update_clip": 0.0}, "update_clip must be"),
    ):
        with pytest.raises(ValueError, match=message):
            gk.psgd_pro(**options)
