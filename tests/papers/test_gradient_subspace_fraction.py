"""Gradients and the subspace of the largest curvatures (Gur-Ari, Roberts, Dyer, 2018)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from gradkit.diagnostics import gradient_subspace_fraction, subspace_overlap, top_eigenpairs
from tests.papers.replay import normal


def orthonormal(seed: int, d: int, k: int) -> np.ndarray:
    """k rows."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, k)))[0].T


def as_tree(rows: np.ndarray) -> Any:
    """The last axis, of length 7, as a tree of two leaves."""
    lead = rows.shape[:-1]
    return {"a": jnp.asarray(rows[..., :3]), "b": jnp.asarray(rows[..., 3:]).reshape(*lead, 2, 2)}


def test_top_eigenpairs_of_a_dense_hessian(x64: None) -> None:
    """Values, vectors up to sign, and residuals; the largest in magnitude, which is negative, is no answer."""
    params = {"w": normal(0, 4, 3), "head": normal(1, 3, 2)}
    inputs = normal(2, 9, 4)
    loss = lambda x: -3 * jnp.mean(jnp.cos(2 * jnp.tanh(inputs @ x["w"]) @ x["head"]))  # noqa: E731
    flat, unravel = ravel_pytree(params)

    def both(key: jax.Array) -> Any:
        product = jax.linearize(jax.grad(loss), params)[1]
        few = top_eigenpairs(product, key, params, 3)
        short = top_eigenpairs(product, key, params, 3, steps=5)
        return few, short, jax.hessian(lambda f: loss(unravel(f)))(flat)

    found, short, H = jax.jit(both)(jax.random.key(0))
    values, vectors = np.linalg.eigh(H)
    np.testing.assert_allclose(found.values, values[::-1][:3], rtol=1e-10)
    V = np.concatenate([np.asarray(found.vectors[n]).reshape(3, -1) for n in ("head", "w")], axis=1)
    np.testing.assert_allclose(np.abs(np.sum(V * vectors[:, ::-1].T[:3], axis=1)), 1, rtol=1e-10)
    # The residual is what it says, and bounds the distance to the nearest eigenvalue.
    V = np.concatenate([np.asarray(short.vectors[n]).reshape(3, -1) for n in ("head", "w")], axis=1)
    want = np.linalg.norm(H @ V.T - V.T * np.asarray(short.values)[None], axis=0)
    np.testing.assert_allclose(short.residuals, want, rtol=1e-6, atol=1e-12)
    assert max(np.abs(values - v).min() for v in np.asarray(short.values)) <= short.residuals.max() + 1e-12
    assert short.residuals.max() > 1e-6 > found.residuals.max()


def test_multiple_eigenvalues_are_found_as_often_as_they_are_there(x64: None) -> None:
    """Of 5, 5, 5, 2, 2, -9 a Krylov space has three dimensions."""
    d = jnp.array([5.0, 2.0, 5.0, -9.0, 2.0, 5.0])
    found = jax.jit(lambda k: top_eigenpairs(lambda v: d * v, k, d, 5))(jax.random.key(0))
    np.testing.assert_allclose(found.values, [5, 5, 5, 2, 2], atol=1e-12)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(5), atol=1e-12)
    np.testing.assert_allclose(found.residuals, 0, atol=1e-12)
    # Half of the first two signs: of the three, the vectors span the whole eigenspace.
    assert float(gradient_subspace_fraction(found.vectors[:3], jnp.array([1.0, 0, -2, 0, 0, 3]))) == pytest.approx(1)
    zero = jax.jit(lambda k: top_eigenpairs(lambda v: 0 * v, k, d, 2))(jax.random.key(0))
    np.testing.assert_array_equal(zero.values, 0)
    np.testing.assert_allclose(zero.vectors @ zero.vectors.T, np.eye(2), atol=1e-12)


def test_fractions(x64: None) -> None:
    """In the span 1, orthogonal 0, of any length; between them the cosine squared; a random subspace has k / d."""
    V = orthonormal(0, 7, 7)
    inside, outside = 3 * V[0] - V[1], V[4]
    rows = as_tree(V[:2])
    fraction = lambda g: float(gradient_subspace_fraction(rows, as_tree(g)))  # noqa: E731
    assert fraction(1e-200 * inside) == pytest.approx(1, rel=1e-12)
    assert fraction(outside) == pytest.approx(0, abs=1e-25)
    assert fraction(inside / np.linalg.norm(inside) + 2 * outside) == pytest.approx(0.2, rel=1e-12)
    assert fraction(np.zeros(7)) == 0
    draws = [fraction(g) for g in np.random.default_rng(1).standard_normal((400, 7))]
    # Of 400 draws of a Beta(1, 5/2) variable.
    assert np.mean(draws) == pytest.approx(2 / 7, abs=4 * np.std(draws) / 20)


def test_overlaps(x64: None) -> None:
    """1 for the same subspace in another basis, 0 for an orthogonal one, one half where half is shared."""
    V = orthonormal(2, 7, 7)
    Q = orthonormal(3, 3, 3)
    overlap = lambda a, b: float(subspace_overlap(as_tree(a), as_tree(b)))  # noqa: E731
    assert overlap(V[:3], Q @ V[:3]) == pytest.approx(1, rel=1e-12)
    assert overlap(V[:3], V[3:6]) == pytest.approx(0, abs=1e-25)
    assert overlap(V[:2], V[1:3]) == pytest.approx(0.5, rel=1e-12)
    A, B = V[:2], orthonormal(4, 7, 2)
    assert overlap(A, B) == pytest.approx(np.sum((A @ B.T) ** 2) / 2, rel=1e-12)


def test_bad_input() -> None:
    x = jnp.ones(3)
    double = lambda v: 2 * v  # noqa: E731
    with pytest.raises(ValueError, match="k must be at most the 3 parameters, got 4"):
        top_eigenpairs(double, 0, x, 4)
    with pytest.raises(ValueError, match="steps must be at least k=2"):
        top_eigenpairs(double, 0, x, 2, steps=1)
    with pytest.raises(ValueError, match="has dtype int32"):
        top_eigenpairs(double, 0, jnp.ones(3, jnp.int32), 1)
    with pytest.raises(ValueError, match="vectors must be a tree with the same leading axis"):
        gradient_subspace_fraction({"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))}, {"a": x, "b": x})
    with pytest.raises(ValueError, match="has shape"):
        gradient_subspace_fraction(jnp.eye(3), jnp.ones(4))
    with pytest.raises(ValueError, match="has shape"):
        subspace_overlap(jnp.eye(3), jnp.eye(3)[:2])
