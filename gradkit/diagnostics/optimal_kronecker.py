"""How well a Kronecker product of two matrices approximates the second moments of a gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, wide_dtype
from gradkit.engine.matching import check_leaves

PAPER = Paper("A New Perspective on Shampoo's Preconditioner", "Morwani et al.", 2024, "2406.17748")


def _samples(method: str, grads: Any) -> jax.Array:
    check_leaves(method, grads, complex_leaves=False)
    if jnp.ndim(grads) != 3 or not jnp.shape(grads)[0]:
        raise ValueError(f"{method}: grads must be matrices along a leading axis, got the shape {jnp.shape(grads)}")
    grads = jnp.asarray(grads)
    return grads.astype(wide_dtype(grads.dtype))


def _square(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x))


def optimal_kronecker(grads: jax.Array, *, iterations: int = 10) -> tuple[jax.Array, jax.Array]:
    """The Kronecker product that is nearest to the second moments of some gradients of one matrix.

    Equations, for the second moments H = E[vec G vec G^T] of matrices G; the best A (x) B in the Frobenius norm, by the
    power method from B = I:

        A <- E[G B G^T] / |B|_F^2
        B <- E[G^T A G] / |A|_F^2

    One pass from B = I gives A proportional to L = E[G G^T] and, from A = I, B proportional to R = E[G^T G]:
    L (x) R / Tr(L) is Shampoo's approximation of H; Shampoo as it is commonly used has the square root of it.

    Args:
      grads: (samples, n, m): gradients of one matrix, of single examples or of batches.
      iterations: passes of the power method, >= 1. Default 10; one pass is Shampoo's, and is close to the limit.

    Returns:
      A (n, n) and B (m, m) with A (x) B nearest to E[vec G vec G^T], where vec concatenates rows: the moment of
      G[i, j] and G[k, l] is A[i, k] B[j, l].

    Raises:
      ValueError: gradients that are no matrices along a leading axis; `iterations` below 1.

    Example:
      >>> G = jnp.array([[[1.0, 2.0], [2.0, 4.0]]])  # of rank 1: the moments are a Kronecker product
      >>> A, B = optimal_kronecker(G, iterations=1)
      >>> round(float(kronecker_cosine(G, A, B)), 6)
      1.0

    Reference: Morwani et al. A New Perspective on Shampoo's Preconditioner. 2024, arXiv 2406.17748.
    """
    checks.arrays(grads=grads)
    checks.integer("iterations", iterations, 1)
    G = _samples("optimal_kronecker", grads)

    def one(_: Any, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        B = pair[1]
        A = divide(jnp.einsum("sij,jl,skl->ik", G, B, G, precision="highest") / len(G), _square(B))
        B = divide(jnp.einsum("sij,ik,skl->jl", G, A, G, precision="highest") / len(G), _square(A))
        return A, B

    start = jnp.zeros((G.shape[1],) * 2, G.dtype), jnp.eye(G.shape[2], dtype=G.dtype)
    return jax.lax.fori_loop(0, iterations, one, start)


def kronecker_cosine(grads: jax.Array, A: jax.Array, B: jax.Array) -> jax.Array:
    """The cosine between the second moments of some gradients of one matrix and A (x) B.

    Equations, with the second moments H = E[vec G vec G^T]:

        cos = E[<G, A G B>] / (|H|_F |A|_F |B|_F),         |H|_F^2 = E over pairs of <G, G'>^2

    |H|_F is computed from the products of all pairs of samples: H is never formed.

    Args:
      grads: (samples, n, m), as in `optimal_kronecker`.
      A: (n, n).
      B: (m, m).

    Returns:
      A number, at most 1; 1 where the moments are a multiple of the product. 0 where one of them is 0.

    Raises:
      ValueError: gradients that are no matrices along a leading axis; A or B of another shape.

    Example:
      >>> G = jnp.eye(2)[None]
      >>> round(float(kronecker_cosine(G, jnp.eye(2), jnp.eye(2))), 4)  # H has rank 1, the identity rank 4
      0.5

    Reference: Morwani et al. A New Perspective on Shampoo's Preconditioner. 2024, arXiv 2406.17748.
    """
    checks.arrays(grads=grads)
    G = _samples("kronecker_cosine", grads)
    want = tuple((d, d) for d in G.shape[1:])
    if (jnp.shape(A), jnp.shape(B)) != want:
        raise ValueError(
            f"kronecker_cosine: A and B must have the shapes {want}, got {jnp.shape(A)} and {jnp.shape(B)}"
        )
    A, B = (jnp.asarray(x).astype(G.dtype) for x in (A, B))
    flat = G.reshape(len(G), -1)
    square = jnp.mean(jnp.square(jnp.matmul(flat, flat.T, precision="highest")))
    product = jnp.einsum("sij,ik,skl,lj->s", G, A, G, B, precision="highest")
    return divide(jnp.mean(product), jnp.sqrt(square * _square(A) * _square(B)))


GRADS = np.stack([np.eye(2, dtype=np.float32), np.ones((2, 2), np.float32)])
register(optimal_kronecker, form="function", paper=PAPER, example={"grads": GRADS})
register(kronecker_cosine, form="function", paper=PAPER, example={"grads": GRADS, "A": np.eye(2), "B": np.eye(2)})
