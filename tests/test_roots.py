"""Inverse roots and eigenbases, against eigenvalue decompositions in float64 NumPy."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.linalg import eigenbasis, inverse_root

RANDOM, DEFICIENT = np.linspace(0.2, 3.0, 8), np.array([1.5, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0])
SPECTRA = {"random": RANDOM, "deficient": DEFICIENT, "condition 1e12": np.logspace(0, -12, 8), "zero": np.zeros(8)}
SOLVERS = [("eigh", 4), ("eigh", 1.5), ("coupled_newton", 4), ("higher_order", 4), ("higher_order", 4 / 3)]


def symmetric(values: np.ndarray, seed: int = 0) -> np.ndarray:
    d = len(values)
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]
    return (Q * values @ Q.T + (Q * values @ Q.T).T) / 2


def reference(A: np.ndarray, p: float, eps: float) -> np.ndarray:
    values, Q = np.linalg.eigh(A)
    return Q * (np.maximum(values, 0) + eps) ** (-1 / p) @ Q.T


@pytest.mark.parametrize(("method", "p"), SOLVERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_solver_on_every_spectrum_in_one_batch(method: str, p: float, dtype: Any, x64: None) -> None:
    """Matrices that converge at once and late, together. The error of a root is at most the error of A (some units of
    its dtype, times d) over eps, times 1 / p; an iteration adds the tolerance it stops at."""
    eps, d = 1e-3, 8
    A = np.stack([symmetric(values) for values in SPECTRA.values()])
    got = np.asarray(inverse_root(jnp.asarray(A, dtype), p, eps=eps, method=method, tolerance=1e-6), np.float64)
    bound = 10 * d * np.finfo(dtype).eps / eps + (0 if method == "eigh" else 1e-6)
    for name, a, x in zip(SPECTRA, A, got, strict=True):
        want = reference(a, p, eps)
        assert np.linalg.norm(x - want) <= bound * np.linalg.norm(want), name
        np.testing.assert_array_equal(x, x.T)


def test_eigh_keeps_the_condition_1e12(x64: None) -> None:
    """Without eps, A + 0 I = L^T L to a relative 2^-53 / 1e-12 of the smallest eigenvalue: 1e-4 of its root over 4."""
    A = symmetric(SPECTRA["condition 1e12"])
    X = np.asarray(inverse_root(jnp.asarray(A), 4, eps=0.0))
    np.testing.assert_allclose(X, reference(A, 4, 0.0), rtol=0, atol=1e-3 * 1e3)
    np.testing.assert_allclose(np.linalg.matrix_power(X, 4) @ A, np.eye(8), atol=1e-3)


def test_negative_rounding_is_lifted_to_eps(x64: None) -> None:
    """An eigenvalue of -0.1 is no rounding, but what is done with it is: the spectrum moves up until it is eps."""
    A = np.diag([1.0, 0.5, -0.1])
    got = inverse_root(jnp.asarray(A), 2, eps=0.01)
    np.testing.assert_allclose(np.asarray(got), np.diag(np.array([1.11, 0.61, 0.01]) ** -0.5), rtol=1e-14)


@pytest.mark.parametrize("method", ["eigh", "coupled_newton", "higher_order"])
def test_every_matrix_may_have_an_eps_of_its_own(method: str, x64: None) -> None:
    A = jnp.stack([jnp.diag(jnp.array([1.0, 0.5])), jnp.zeros((2, 2)), jnp.diag(jnp.array([1.0, 0.0]))])
    got = inverse_root(A, 2, eps=jnp.array([0.1, 2.0, 0.25]), method=method)
    want = [np.diag([1.1**-0.5, 0.6**-0.5]), np.eye(2) / np.sqrt(2), np.diag([1.25**-0.5, 2.0])]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-8)


def test_what_has_no_root_is_not_finite_or_runs_away(x64: None) -> None:
    """Also next to a matrix that has one, which is untouched."""
    A = jnp.stack([jnp.eye(3), jnp.zeros((3, 3)), jnp.diag(jnp.array([1.0, 1.0, -0.5]))])
    for method in ("eigh", "coupled_newton", "higher_order"):
        X = np.asarray(inverse_root(A, 2, eps=0.0, method=method))
        np.testing.assert_allclose(X[0], np.eye(3), atol=1e-6)
        assert not np.isfinite(X[1]).all() and not np.isfinite(X[2]).all(), method


def test_no_products_in_lower_precision() -> None:
    """Under a default of bfloat16 products the iterations ask for full ones."""
    A = jnp.asarray(symmetric(RANDOM), jnp.float32)
    with jax.default_matmul_precision("bfloat16"):
        for method in ("eigh", "coupled_newton", "higher_order"):
            text = jax.jit(lambda A, m=method: inverse_root(A, 4, eps=1e-3, method=m)).lower(A).as_text()
            assert "dot_general" in text
            assert "precision = [DEFAULT, DEFAULT]" not in text and "bf16" not in text


def test_bad_input_of_roots() -> None:
    A = jnp.eye(2)
    for kwargs, message in [
        ({"p": 0}, "p must be in"),
        ({"p": 2, "eps": -1.0}, "eps must be in"),
        ({"p": 2, "eps": np.array([1.0, -1.0])}, "eps must be in"),
        ({"p": 2, "eps": np.ones(3)}, r"eps must be one number or of shape \(\)"),
        ({"p": 2, "method": "svd"}, "method must be one of"),
        ({"p": 1.5, "method": "coupled_newton"}, "p must be a whole number"),
        ({"p": np.pi, "method": "higher_order"}, "p must be a fraction"),
        ({"p": 2, "max_iters": 0}, "max_iters must be an integer"),
    ]:
        with pytest.raises(ValueError, match=message):
            inverse_root(A, **kwargs)
    with pytest.raises(ValueError, match="square matrices, got the shape"):
        inverse_root(jnp.ones((2, 3)), 2)
    assert inverse_root(jnp.ones((0, 3, 3)), 2).shape == (0, 3, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_eigenvectors_in_order_with_fixed_signs(dtype: Any, x64: None) -> None:
    A = np.stack([symmetric(values, seed) for seed, values in enumerate(SPECTRA.values())])
    vectors, order = (np.asarray(x) for x in eigenbasis(jnp.asarray(A, dtype)))
    small = 8 * 10 * np.finfo(dtype).eps
    for a, Q in zip(A, vectors.astype(np.float64), strict=True):
        np.testing.assert_allclose(Q.T @ Q, np.eye(8), atol=small)
        values = np.diag(Q.T @ a @ Q)
        assert (np.diff(values) <= small).all()
        np.testing.assert_allclose(Q.T @ a @ Q, np.diag(values), atol=small)
        assert (Q[np.abs(Q).argmax(0), np.arange(8)] > 0).all()
    assert (order == np.arange(8)).all()


def test_power_steps_converge_to_the_eigenvectors(x64: None) -> None:
    """Columns of ratio r of neighbouring eigenvalues lose r per step of what is wrong; columns come out sorted, and the
    order says from where."""
    values = 2.0 ** -np.arange(6)
    A = symmetric(values)
    want, _ = eigenbasis(jnp.asarray(A))
    Q = jnp.asarray(np.linalg.qr(np.random.default_rng(5).standard_normal((6, 6)))[0])
    step = jax.jit(lambda Q: eigenbasis(jnp.asarray(A), Q, method="qr"))
    for i in range(60):
        before, (Q, order) = Q, step(Q)
        np.testing.assert_allclose(Q.T @ Q, np.eye(6), atol=1e-13)
        if i == 0:
            e = np.diag(np.asarray(before).T @ A @ np.asarray(before))
            np.testing.assert_array_equal(order, np.argsort(-e))
            R = np.linalg.qr(A @ np.asarray(before)[:, np.argsort(-e)])[0]
            np.testing.assert_allclose(np.abs(Q), np.abs(R), atol=1e-13)
    np.testing.assert_allclose(Q, want, atol=1e-12)


def test_bad_input_of_bases() -> None:
    with pytest.raises(ValueError, match="square matrices"):
        eigenbasis(jnp.ones((2, 3)))
    for kwargs in ({"method": "qr"}, {"previous": jnp.eye(2)}):
        with pytest.raises(ValueError, match="previous must be given"):
            eigenbasis(jnp.eye(2), **kwargs)
    with pytest.raises(ValueError, match="method must be one of"):
        eigenbasis(jnp.eye(2), method="svd")
    assert importlib.import_module("gradkit.linalg.eigenbasis").fix_signs(-jnp.eye(2)).tolist() == jnp.eye(2).tolist()
