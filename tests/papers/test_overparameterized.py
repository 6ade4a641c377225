"""Overparameterization without the layers: sums of powers, explicit layers, and the exact flow of their modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk


def power(M: np.ndarray, p: float) -> np.ndarray:
    s, Q = np.linalg.eigh(M)
    # The rank is that of random matrices: what is smaller is the rounding of a zero, whose root would be no rounding.
    return (Q * np.where(s > 1e-12 * s[-1], s, 0) ** p) @ Q.T


def defined(W: np.ndarray, G: np.ndarray, N: int) -> np.ndarray:
    """The sum of the paper as it stands."""
    if N == 1:
        return G
    return np.sum([power(W @ W.T, (j - 1) / N) @ G @ power(W.T @ W, (N - j) / N) for j in range(1, N + 1)], axis=0)


def direction(W: np.ndarray, G: np.ndarray, N: float, **how: object) -> np.ndarray:
    tx = gk.scale_by_overparameterization(N, **how)
    return np.asarray(tx.update({"w": jnp.asarray(G)}, tx.init({"w": W}), {"w": jnp.asarray(W)})[0]["w"])


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)])
def test_is_the_sum_of_powers(shape: tuple[int, int], x64: None) -> None:
    rng = np.random.default_rng(0)
    W, G = rng.standard_normal(shape), rng.standard_normal(shape)
    for N in (1, 2, 3, 4):
        want = defined(W, G, N)
        # The eigenvalues of the reference are right to 2^-53 of the largest, and their roots to the condition of W.
        np.testing.assert_allclose(direction(W, G, N), want, atol=1e-11)
        assert np.sum(G * direction(W, G, N)) >= 0
        np.testing.assert_allclose(direction(W.T, G.T, N), direction(W, G, N).T, atol=1e-13)
        np.testing.assert_allclose(direction(W, G, N, normalize=True), direction(W, G, N) / N, rtol=1e-14)


def test_the_vector_rule_is_the_matrix_rule_of_one_row(x64: None) -> None:
    rng = np.random.default_rng(1)
    w, g = rng.standard_normal(5), rng.standard_normal(5)
    for N in (1, 2, 3.5):
        norm = np.linalg.norm(w)
        want = norm ** (2 - 2 / N) * (g + (N - 1) * (w @ g) * w / norm**2)
        np.testing.assert_allclose(direction(w, g, N, vectors=True), want, rtol=1e-13)
        np.testing.assert_allclose(direction(w[None], g[None], N)[0], want, rtol=1e-13)
        np.testing.assert_array_equal(direction(w, g, N), g)


def test_equal_and_vanishing_singular_values(x64: None) -> None:
    """No 0 / 0: the identity has C = N everywhere, a zero matrix does not move, and moves with eps."""
    G = np.random.default_rng(2).standard_normal((3, 3))
    np.testing.assert_allclose(direction(np.eye(3), G, 3), 3 * G, rtol=1e-13)
    np.testing.assert_array_equal(direction(np.zeros((3, 3)), G, 2), np.zeros((3, 3)))
    np.testing.assert_allclose(direction(np.zeros((3, 3)), G, 2, eps=0.5), 2 * 0.5 * G, rtol=1e-12)
    # Half a rounding apart: the divided difference is 2 s, which a plain quotient has no digit of.
    close = np.diag([1.0, 1.0 + 2e-16])
    np.testing.assert_allclose(direction(close, np.ones((2, 2)), 2), 2, rtol=1e-13)


def test_layers_that_exist_move_their_product_by_it(x64: None) -> None:
    """Three balanced layers against the rule: the distance after unit time is halved with the learning rate."""
    rng = np.random.default_rng(3)
    W0, target = rng.standard_normal((3, 3)), rng.standard_normal((3, 3))
    U, s, Vt = np.linalg.svd(W0)
    root = np.diag(s ** (1 / 3))
    distances = []
    for eta in (0.01, 0.005):
        layers, W = [root @ Vt, root, U @ root], W0
        tx = gk.overparameterized(eta, depth=3)
        update = jax.jit(lambda g, x, tx=tx: tx.update({"w": g}, tx.init({"w": x}), {"w": x})[0]["w"])
        for _ in range(round(1 / eta)):
            a, b, c = layers
            G = c @ b @ a - target
            layers = [a - eta * (c @ b).T @ G, b - eta * c.T @ G @ a.T, c - eta * G @ (b @ a).T]
            W = W + np.asarray(update(W - target, W))
        distances.append(np.abs(layers[2] @ layers[1] @ layers[0] - W).max())
    np.testing.assert_allclose(distances[1] / distances[0], 0.5, atol=0.1)  # first order, up to the second


def test_decay_of_each_of_the_layers_is_n_times_that_of_the_product() -> None:
    x = {"w": jnp.eye(2)}
    for normalize, want in ((False, 3.0), (True, 1.0)):
        tx = gk.overparameterized(0.5, depth=3, weight_decay=0.1, normalize=normalize)
        u = tx.update({"w": jnp.zeros((2, 2))}, tx.init(x), x)[0]["w"]
        np.testing.assert_allclose(np.asarray(u), -0.05 * want * np.eye(2), rtol=1e-6)


def test_the_flow_of_two_layers_is_that_of_the_modes(x64: None) -> None:
    """An aligned start of small singular values: Euler's steps follow the exact strengths of `linear_mode_strength`."""
    s, a, eta = np.array([3.0, 1.0]), np.array([0.01, 0.02]), 1e-3
    tx = gk.overparameterized(eta, depth=2)

    def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return x + tx.update({"w": x - jnp.diag(jnp.asarray(s))}, tx.init({"w": x}), {"w": x})[0]["w"], None

    x, _ = jax.jit(lambda x: jax.lax.scan(step, x, length=1000))(jnp.diag(jnp.asarray(a)))
    want = gk.diagnostics.linear_mode_strength(1.0, s, a)
    # Euler's error: of the order eta times the square of the largest exponent, 6.
    np.testing.assert_allclose(np.diag(x), want, rtol=36 * eta)
