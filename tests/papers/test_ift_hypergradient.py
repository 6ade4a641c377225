"""Hypergradients by implicit differentiation (Lorraine, Vicol, Duvenaud, 2019)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.gradients import ift_hypergradient, neumann_ihvp

RNG = np.random.default_rng(0)
A, Y, B, Z = RNG.standard_normal((8, 3)), RNG.standard_normal(8), RNG.standard_normal((5, 3)), RNG.standard_normal(5)
LAM = np.array([0.5, 2.0, 1.0])


def train(w, lam):
    """Ridge regression with a penalty per weight."""
    return jnp.sum((A @ w["w"] - Y) ** 2) / 2 + jnp.sum(lam * w["w"] ** 2) / 2


def valid(w, lam):
    return jnp.sum((B @ w["w"] - Z) ** 2) / 2 + 0.1 * jnp.sum(lam**2)


def trained():
    H = A.T @ A + np.diag(LAM)
    return {"w": jnp.asarray(np.linalg.solve(H, A.T @ Y))}, H


def test_of_ridge_regression_it_is_the_exact_gradient(x64):
    """dL/dlam_i = -(H^{-1} v)_i w_i + 0.2 lam_i; the series with 3000 terms, and conjugate gradients."""
    params, H = trained()
    w = np.asarray(params["w"])
    want = -np.linalg.solve(H, B.T @ (B @ w - Z)) * w + 0.2 * LAM
    step = 1.0 / np.linalg.eigvalsh(H).max()
    # Eigenvalues of step H are above 0.03: 3000 terms leave exp(-90).
    got = ift_hypergradient(train, valid, params, jnp.asarray(LAM), 3000, step=step)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    cg = lambda hvp, v: jax.scipy.sparse.linalg.cg(hvp, v, tol=1e-14)[0]  # noqa: E731
    np.testing.assert_allclose(
        ift_hypergradient(train, valid, params, jnp.asarray(LAM), step=step, solver=cg), want, rtol=1e-9
    )


@pytest.mark.parametrize("terms", [0, 1, 7])
def test_the_series_is_its_closed_form(terms, x64):
    """(I - (I - s H)^{K+1}) H^{-1} v, with the step once in front: forgetting it is the usual mistake."""
    _, H = trained()
    v, s = RNG.standard_normal(3), 0.05
    want = (np.eye(3) - np.linalg.matrix_power(np.eye(3) - s * H, terms + 1)) @ np.linalg.solve(H, v)
    np.testing.assert_allclose(neumann_ihvp(lambda v: H @ v, jnp.asarray(v), terms, step=s), want, rtol=1e-12)


def test_it_is_unrolled_differentiation_from_the_minimum(x64):
    """K + 1 steps of gradient descent that start, and so stay, at the minimum."""
    params, _ = trained()
    s, terms = 0.02, 4

    def unrolled(lam):
        w = params
        for _ in range(terms + 1):
            w = jax.tree.map(lambda w, g: w - s * g, w, jax.grad(train)(w, lam))
        return valid(w, lam)

    want = jax.jit(jax.grad(unrolled))(jnp.asarray(LAM))
    got = ift_hypergradient(train, valid, params, jnp.asarray(LAM), terms, step=s)
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_a_step_of_zero_is_refused():
    with pytest.raises(ValueError, match="step must be in"):
        neumann_ihvp(lambda v: v, jnp.ones(2), step=0.0)
