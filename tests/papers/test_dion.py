"""Dion (Ahn et al., 2025)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.optimizers.matrix.dion import orthonormal
from tests.papers.replay import assert_equal, normal
from tests.papers.test_project_low_rank import directions


def with_start(state: Any, Q: jax.Array) -> Any:
    return state._replace(Q=dict.fromkeys(state.Q, Q))


@pytest.mark.parametrize("side", ["inputs", "outputs", "short"])
def test_the_algorithm(side: str, x64: None) -> None:
    """In plain NumPy, on a 6 x 4 matrix: Q at the inputs has 6 rows, at the outputs and at the short side 4."""
    tx = gk.scale_by_dion(rank=2, momentum=0.9, side=side, key=3)
    gradients = [normal(i, 6, 4) for i in range(5)]
    state = tx.init(gradients[0])
    M, Q = np.asarray(state.M if side == "inputs" else state.M.T), np.asarray(*state.Q.values())
    assert Q.shape == ((6, 2) if side == "inputs" else (4, 2)) and not M.any()
    update = jax.jit(tx.update)
    for g in gradients:
        d, state = update(g, state)
        M = M + (np.asarray(g) if side == "inputs" else np.asarray(g).T)
        P = np.linalg.qr(M.T @ Q)[0]
        R = M @ P
        M = M - 0.1 * R @ P.T
        Q = R / (np.linalg.norm(R, axis=0) + 1e-8)
        want = np.sqrt(4 / 6) * Q @ P.T
        assert_equal(d, want if side == "inputs" else want.T, 1e-10, 1e-11)
        # P is orthonormal and the columns of Q are of norm 1 (up to eps): so has Q P^T sqrt(r) as its norm.
        np.testing.assert_allclose(np.linalg.norm(np.asarray(d)), np.sqrt(4 / 6) * np.sqrt(2), rtol=1e-7)


def test_with_all_directions_it_has_the_singular_vectors_of_the_gradient(x64: None) -> None:
    """From its singular vectors: one step from M = 0 is sqrt(outputs / inputs) U V^T."""
    g = normal(0, 4, 6)
    U, _, Vt = np.linalg.svd(np.asarray(g), full_matrices=False)
    tx = gk.scale_by_dion(key=0)
    d, _ = tx.update(g, with_start(tx.init(g), jnp.asarray(U)))
    assert_equal(d, np.sqrt(6 / 4) * U @ Vt, 1e-7, 1e-8)  # eps = 1e-8 against singular values near 1
    # The power method comes to them from anywhere.
    mu = directions(gk.scale_by_dion(key=0, momentum=0.0), [g] * 300)[-1]
    assert_equal(mu, np.sqrt(6 / 4) * U @ Vt, 1e-5, 1e-5)


@pytest.mark.parametrize("how", ["qr", "cholesky_qr", "randomized_cholesky_qr"])
def test_orthonormal_columns(how: str, x64: None) -> None:
    """Of the span; also of matrices that are badly scaled, of less rank, and zero, where Cholesky alone fails."""
    rng, key = np.random.default_rng(0), jax.random.key(1)
    plain = rng.standard_normal((3, 12, 4))
    scaled = plain * np.array([1.0, 1e-6, 1e-9, 1e-12])
    low = plain @ np.ones((4, 4))
    run = jax.jit(lambda Y: orthonormal(Y, how, key))
    for Y in (plain, scaled, low, 0 * plain):
        P = np.asarray(run(jnp.asarray(Y)))
        gram = np.swapaxes(P, 1, 2) @ P
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(4), gram.shape), atol=1e-9)
    P = np.asarray(run(jnp.asarray(plain)))
    np.testing.assert_allclose(P @ (np.swapaxes(P, 1, 2) @ plain), plain, atol=1e-12)


def test_the_factorisation_does_not_matter(x64: None) -> None:
    """Q and R of the QR are unique up to signs, which cancel."""
    g = [normal(i, 4, 6) for i in range(4)]
    want = directions(gk.scale_by_dion(rank=2, key=0), g)
    for qr in ("cholesky_qr", "randomized_cholesky_qr"):
        got = directions(gk.scale_by_dion(rank=2, key=0, qr=qr), g)
        assert_equal(got, want, 1e-8, 1e-9)


def test_while_nothing_came_nothing_moves(x64: None) -> None:
    tx, g = gk.scale_by_dion(rank=2, key=0), {"a": normal(0, 4, 6), "b": normal(1, 4, 6)}
    state = tx.init(g)
    d, after = tx.update(g | {"b": jnp.zeros((4, 6))}, state)
    assert not d["b"].any() and d["a"].any()
    assert_equal(after.Q["b"]["inputs"], state.Q["b"]["inputs"])


@pytest.mark.parametrize(
    ("options", "rank"),
    [({}, 4), ({"rank_fraction": 0.3}, 2), ({"rank_fraction": 0.3, "rank_multiple_of": 3}, 3), ({"rank": 9}, 4)],
)
def test_ranks(options: dict[str, Any], rank: int) -> None:
    """ceil(fraction x short side) up to a multiple, at most the short side; 1 + r / m words per parameter."""
    state = gk.scale_by_dion(key=0, **options).init(jnp.ones((4, 6)))
    assert state.Q["inputs"].shape == (4, rank)
    assert sum(x.size for x in jax.tree.leaves(state)) == 24 + 4 * rank


def test_replicas_exchange_factors_and_agree_with_one_device(x64: None) -> None:
    """(n + m) r words per step in place of n m; M of one device is the mean over the replicas'."""
    g = [jnp.stack([normal(10 * w + t, 4, 6) for w in range(3)]) for t in range(4)]
    tx = gk.scale_by_dion(rank=1, key=0, replica_axis="replica")
    alone = gk.scale_by_dion(rank=1, key=0)
    states, state = jax.vmap(tx.init, axis_name="replica")(g[0]), alone.init(g[0][0])
    update = jax.jit(jax.vmap(lambda x, s: tx.update(x, s), axis_name="replica"))
    for x in g:
        got, states = update(x, states)
        want, state = alone.update(x.mean(0), state)
        for w in range(3):
            assert_equal(got[w], want, 1e-10, 1e-11)
    assert_equal(states.M.mean(0), state.M, 1e-10, 1e-11)
    program = str(jax.make_jaxpr(tx.update, axis_env=[("replica", 3)])(g[0][0], tx.init(g[0][0])))
    assert program.count("psum") == 2


def test_bad_input() -> None:
    for options, message in (
        ({}, "key must be"),
        ({"key": 0, "rank_fraction": 0.0}, "rank_fraction must be"),
        ({"key": 0, "rank": 0}, "rank must be"),
        ({"key": 0, "qr": "svd"}, "qr must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            gk.dion(0.1, **options)
    # Of matrices alone, there is nothing to decide.
    jax.eval_shape(gk.dion(0.1, key=0).init, {"kernel": jnp.ones((3, 2))})
    with pytest.raises(
        ValueError, match=r"^dion: 'bias' is no matrix and takes AdamW, .* give adam_learning_rate, 3e-4"
    ):
        gk.dion(0.1, key=0).init({"bias": jnp.ones(3), "kernel": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match=r"'bias' of shape .* is no matrix"):
        gk.scale_by_dion(key=0).init({"bias": jnp.ones(3)})
