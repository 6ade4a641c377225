"""Eigenvectors of symmetric matrices, computed afresh or by one step of the power method from previous ones."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.linalg.one_by_one import one_by_one

METHODS = ("eigh", "qr")


class Basis(NamedTuple):
    """Orthonormal columns (..., d, d); and for each the index of the previous column that it continues, (..., d)."""

    vectors: jax.Array
    order: jax.Array


def fix_signs(Q: jax.Array) -> jax.Array:
    """The columns, with signs such that the entry of largest magnitude of each is positive.

    >>> fix_signs(jnp.array([[0.6, -0.8], [-0.8, -0.6]])).tolist()
    [[-0.6000000238418579, 0.800000011920929], [0.800000011920929, 0.6000000238418579]]
    """
    largest = jnp.argmax(jnp.abs(Q), axis=-2, keepdims=True)
    return Q * jnp.where(jnp.take_along_axis(Q, largest, axis=-2) < 0, -1.0, 1.0).astype(Q.dtype)


def eigenbasis(A: jax.Array, previous: Any = None, *, method: str = "eigh") -> Basis:
    """The eigenvectors of every matrix of a batch, largest eigenvalue first.

    Equations:

        A = Q diag(l) Q^T,  l descending                           "eigh"
        Q = qr(A Q_prev[:, order]).Q                               "qr": one step of the power method for all columns
        order = diag(Q_prev^T A Q_prev) descending

    The entry of largest magnitude of every column is positive, because eigenvectors are unique only up to sign. In a
    null space (and among equal eigenvalues) the vectors are arbitrary.

    Args:
      A: (..., d, d), symmetric, in float32 or float64.
      previous: with "qr", the orthonormal columns Q_prev to start from, (..., d, d).
      method: "eigh" or "qr". Default "eigh".

    Returns:
      A `Basis`. With "eigh" the order is 0, 1, 2, …

    Raises:
      ValueError: an unknown method; a matrix that is not square; "qr" without `previous`, "eigh" with it.

    Example:
      >>> A = jnp.diag(jnp.array([1.0, 3.0, 2.0]))
      >>> vectors, order = eigenbasis(A)
      >>> print(vectors)
      [[0. 0. 1.]
       [1. 0. 0.]
       [0. 1. 0.]]
      >>> print(eigenbasis(A, jnp.eye(3), method="qr").order)
      [1 2 0]

    Reference: Vyas et al. SOAP: Improving and Stabilizing Shampoo using Adam. 2024, arXiv 2409.11321. Departure: signs
    are fixed, so that a state in the basis does not depend on the linear algebra library that computed it.
    """
    checks.arrays(A=A)
    checks.choice("method", method, METHODS)
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ValueError(f"eigenbasis: A must be a batch of square matrices, got the shape {A.shape}")
    if (previous is None) == (method == "qr"):
        raise ValueError(
            f"eigenbasis: previous must be given with method='qr' and with no other method, got method={method!r} "
            f"and previous of type {type(previous).__name__}; give both, or neither"
        )
    first = jnp.broadcast_to(jnp.arange(A.shape[-1], dtype=jnp.int32), A.shape[:-1])
    if not A.size:
        return Basis(A, first)
    if previous is None:
        return Basis(fix_signs(one_by_one(jnp.linalg.eigh, A)[1][..., ::-1]), first)
    with jax.default_matmul_precision("highest"):
        image = A @ previous
        order = jnp.argsort(jnp.sum(previous * image, axis=-2), axis=-1, descending=True).astype(jnp.int32)
        columns = jnp.take_along_axis(image, jnp.expand_dims(order, -2), axis=-1)
        return Basis(fix_signs(one_by_one(jnp.linalg.qr, columns)[0]), order)
