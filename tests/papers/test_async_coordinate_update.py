"""Asynchronous coordinate updates: Gauss-Seidel, Jacobi, and one limit for every table of delays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.parallel import async_coordinate_update, degas

M = 4
# Diagonally dominant by rows, so x -> D^-1 (b - (A - D) x) contracts the maximum norm by 0.75 or better.
A = 4.0 * np.eye(M) + np.random.default_rng(0).choice([-1.0, 1.0], (M, M)) * (1 - np.eye(M))
B = np.random.default_rng(1).standard_normal(M)


def jacobi(x: Any, i: Any) -> Any:
    D = jnp.diag(jnp.asarray(A))
    return (jnp.asarray(B)[i] - jnp.asarray(A)[i] @ x + D[i] * x[i]) / D[i]


def versions_now(events: int) -> np.ndarray:
    return np.tile(np.arange(events)[:, None], (1, M))


def table(kind: str, events: int) -> tuple[np.ndarray, np.ndarray]:
    rng, now = np.random.default_rng(2), versions_now(events)
    if kind == "cyclic":
        return np.arange(events) % M, now
    if kind == "random":
        return rng.integers(0, M, events), np.maximum(now - rng.integers(0, 9, (events, M)), 0)
    # As old as 30 events, and each block by another age.
    return np.arange(events) % M, np.maximum(now - np.array([30, 7, 0, 19]), 0)


def test_without_delay_it_is_gauss_seidel(x64: None) -> None:
    _, path = async_coordinate_update(jacobi, jnp.zeros(M), *table("cyclic", 2 * M))
    x = np.zeros(M)
    for k in range(2 * M):
        i = k % M
        x[i] = (B[i] - A[i] @ x + A[i, i] * x[i]) / A[i, i]
        np.testing.assert_allclose(path[k + 1], x, rtol=1e-13)


def test_all_blocks_from_one_version_is_jacobi(x64: None) -> None:
    reads = np.repeat([[0] * M, [M] * M], M, axis=0)
    end, _ = async_coordinate_update(jacobi, jnp.zeros(M), np.arange(2 * M) % M, reads)
    x = np.zeros(M)
    for _ in range(2):
        x = (B - A @ x) / np.diag(A) + x
    np.testing.assert_allclose(end, x, rtol=1e-13)


@pytest.mark.parametrize("kind", ["cyclic", "random", "adversary"])
@pytest.mark.parametrize("relaxation", [1.0, 0.6])
def test_one_limit_for_every_table(kind: str, relaxation: float, x64: None) -> None:
    blocks, reads = table(kind, 4000)
    end, _ = async_coordinate_update(jacobi, jnp.zeros(M), blocks, reads, relaxation=relaxation)
    # A sweep of all blocks from versions at most 34 old contracts by 0.75 (0.85 relaxed): over 100 sweeps.
    np.testing.assert_allclose(end, np.linalg.solve(A, B), rtol=0, atol=1e-6)


def test_block_gradient_descent_with_a_prox(x64: None) -> None:
    """|x - c|^2 / 2 + |x|_1: soft thresholds of c, at any delay."""
    c = jnp.array([3.0, -0.5, -2.0, 0.2])

    def soft(x: Any, step: Any) -> Any:
        return jnp.sign(x) * jnp.maximum(jnp.abs(x) - step, 0.0)

    grad = jax.grad(lambda x: jnp.sum((x - c) ** 2) / 2)
    end, _ = degas(grad, jnp.zeros(M), jnp.array([0.5, 1.0, 0.9, 0.7]), *table("random", 300), prox=soft)
    np.testing.assert_allclose(end, [2.0, 0.0, -1.0, 0.0], atol=1e-9)


def test_bad_input() -> None:
    good = {"operator": jacobi, "x": jnp.zeros(M), "blocks": [0, 1], "reads": [[0] * M, [1] * M]}
    for name, bad in (
        ("blocks", [0, M]),
        ("blocks", [0.0, 1.0]),
        ("reads", [[0] * M, [2] * M]),
        ("reads", [[0] * M]),
        ("relaxation", 0.0),
        ("operator", 3),
        ("x", jnp.zeros(())),
    ):
        with pytest.raises(ValueError, match=f"{name} must be"):
            async_coordinate_update(**{**good, name: bad})
    with pytest.raises(ValueError, match="step must be"):
        degas(lambda x: x, jnp.zeros(M), 0.0, [0], [[0] * M])
