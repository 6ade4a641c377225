"""The factors of PSGD for ONE tensor, learned in the geometry of Q^(1/2) E Q^(3/2) and rotated to be symmetric.

The equations are in the docstring of `gradkit/optimizers/matrix/psgd_pro.py`. The rotation is exp(a R) to third order,
which for a <= 1/8 is orthogonal up to O(a^6).
"""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit.linalg.psgd import is_diagonal

NORMS = ("bound", "exact")
VECTORS, DOUBLE_ITERATIONS = 32, 2
LEAST = 1e-8


def spectral_norm(A: jax.Array, norm: str, key: Any = None) -> jax.Array:
    """|A|_2 of a symmetric or skew-symmetric matrix, or a lower bound of it.

    >>> float(spectral_norm(jnp.diag(jnp.array([3.0, -4.0])), "exact"))
    4.0
    """
    if norm == "exact":
        return jnp.linalg.svd(A, compute_uv=False)[0]
    largest = jnp.max(jnp.abs(A))
    A = A / jnp.where(largest > 0, largest, jnp.ones_like(largest))
    row = A[jnp.argmax(jnp.sum(jnp.square(A), axis=1))]
    V = jax.random.normal(key, (VECTORS, A.shape[1]), A.dtype)
    V = row[None] + jnp.sign(V @ row)[:, None] * V
    for _ in range(DOUBLE_ITERATIONS):
        V = V @ A
        length = jnp.linalg.norm(V, axis=1, keepdims=True)
        V = (V / jnp.where(length > 0, length, jnp.ones_like(length))) @ A
    return largest * jnp.max(jnp.linalg.norm(V, axis=1))


def towards_symmetric(Q: jax.Array, norm: str, key: Any = None) -> jax.Array:
    """The factor after the rotation that increases its trace most.

    >>> bool(jnp.allclose(towards_symmetric(jnp.eye(2), "exact"), jnp.eye(2)))
    True
    """
    R = Q.T - Q
    R = R / jnp.maximum(spectral_norm(R, norm, key), LEAST)
    A = R @ Q
    B = R @ A
    first, second = jnp.trace(A), jnp.trace(B)
    best = jnp.clip(-first / jnp.where(second < 0, second, -jnp.ones_like(second)), 0, 0.125)
    a = jnp.where(second < 0, best, jnp.full_like(best, 0.125))
    return Q + a * (A + 0.5 * a * B)


def learned(Q: Any, L: Any, P: jax.Array, rate: Any, beta_lip: Any, norm: str, key: Any = None) -> tuple[Any, Any]:
    """One step of all factors of a tensor towards E[P P^T] = z I, from the preconditioned tensor P."""
    new, norms = [], []
    with jax.default_matmul_precision("highest"):
        for axis, (q, lipschitz) in enumerate(zip(Q, L, strict=True)):
            keys = (None, None) if key is None else jax.random.split(jax.random.fold_in(key, axis))
            rows = jnp.moveaxis(P, axis, 0).reshape(q.shape[0], -1)
            z = P.size / q.shape[0]
            if is_diagonal(q):
                C = jnp.sum(jnp.square(rows), axis=1, keepdims=True)
                now = jnp.max(C) + z
            else:
                C = rows @ rows.T
                now = spectral_norm(C, norm, keys[0]) + z
            lipschitz = jnp.maximum(beta_lip * lipschitz + (1 - beta_lip) * now, now)
            if is_diagonal(q):
                q = q * (1 - rate / lipschitz * (C - z))
            else:
                q = towards_symmetric(q - rate / lipschitz * (C @ q - z * q), norm, keys[1])
            new.append(q)
            norms.append(lipschitz)
    return tuple(new), tuple(norms)
