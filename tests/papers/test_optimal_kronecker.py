"""The nearest Kronecker product (Morwani et al., 2024): against the SVD of the rearranged moments."""

import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.diagnostics import kronecker_cosine, optimal_kronecker
from tests.papers.replay import assert_equal, normal


def moments(G: np.ndarray) -> np.ndarray:
    flat = G.reshape(len(G), -1)
    return flat.T @ flat / len(G)


def test_it_is_the_leading_singular_pair(x64: None) -> None:
    """Van Loan, Pitsianis: min |H - A (x) B|_F is the best rank 1 of the moments as a (n n, m m) matrix."""
    G = np.asarray(normal(0, 7, 2, 3)) + np.array([3.0, 0, 0])
    H = moments(G).reshape(2, 3, 2, 3).transpose(0, 2, 1, 3).reshape(4, 9)
    U, s, Vt = np.linalg.svd(H)
    want = s[0] * np.kron(U[:, 0].reshape(2, 2), Vt[0].reshape(3, 3))
    A, B = (np.asarray(x) for x in optimal_kronecker(jnp.asarray(G), iterations=60))
    np.testing.assert_allclose(np.kron(A, B), want, atol=1e-12 * np.abs(want).max())
    cosine = float(kronecker_cosine(jnp.asarray(G), A, B))
    np.testing.assert_allclose(cosine, s[0] / np.linalg.norm(s), rtol=1e-12)
    # One pass is Shampoo's, a little worse; its square root, which Shampoo uses, much worse.
    one = [np.asarray(x) for x in optimal_kronecker(jnp.asarray(G), iterations=1)]
    L = np.mean(G @ G.transpose(0, 2, 1), 0)
    np.testing.assert_allclose(one[0], L / 3, rtol=1e-12)
    R = np.mean(G.transpose(0, 2, 1) @ G, 0)

    def root(A: np.ndarray) -> np.ndarray:
        return np.linalg.svd(A)[0] * np.sqrt(np.linalg.svd(A)[1]) @ np.linalg.svd(A)[0].T

    shampoo = [float(kronecker_cosine(jnp.asarray(G), *pair)) for pair in ((L, R), (root(L), root(R)))]
    assert cosine >= shampoo[0] > shampoo[1]


def test_moments_that_are_a_kronecker_product_are_found_at_once(x64: None) -> None:
    """And then L (x) R / Tr(L) is H itself."""
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 2)), rng.standard_normal((3, 3))
    G = np.array([np.outer(a[:, i], b[:, j]) for i in range(2) for j in range(3)])
    A, B = optimal_kronecker(jnp.asarray(G), iterations=1)
    H = moments(G)
    assert_equal(np.kron(A, B), H, rtol=1e-10, atol=1e-13)
    assert_equal(kronecker_cosine(jnp.asarray(G), A, B), 1.0)
    L, R = np.mean(G @ G.transpose(0, 2, 1), 0), np.mean(G.transpose(0, 2, 1) @ G, 0)
    assert_equal(np.kron(L, R) / np.trace(L), H, rtol=1e-10, atol=1e-13)


def test_bad_input_and_zeros() -> None:
    with pytest.raises(ValueError, match="iterations must be"):
        optimal_kronecker(jnp.ones((1, 2, 2)), iterations=0)
    for G in (jnp.ones((2, 2)), jnp.ones((0, 2, 2))):
        with pytest.raises(ValueError, match="matrices along a leading axis"):
            optimal_kronecker(G)
    with pytest.raises(ValueError, match="A and B must have the shapes"):
        kronecker_cosine(jnp.ones((1, 2, 3)), jnp.eye(3), jnp.eye(2))
    zero = jnp.zeros((2, 2, 2))
    assert float(kronecker_cosine(zero, *optimal_kronecker(zero))) == 0
