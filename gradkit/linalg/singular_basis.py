"""The leading left singular vectors of a matrix, signs fixed: X = U S V^T  ->  the first columns of U."""

from functools import partial

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.linalg.one_by_one import one_by_one

SIGNS = ("fixed", "lapack")


def singular_basis(x: jax.Array, rank: int, *, sign: str = "fixed") -> jax.Array:
    """Orthonormal columns that span the best approximation of every matrix of a batch by one of lower rank.

    Args:
      x: (..., n, m), floating point and real.
      rank: number of columns, in [1, min(n, m)].
      sign: "fixed" turns every column so that its entry of largest magnitude is positive; "lapack" leaves the sign that
        the decomposition happens to give, which differs between machines. Default "fixed".

    Returns:
      (..., n, rank), in the dtype of `x`, computed in float32 or wider; columns fall by singular value. Of a zero
      matrix some orthonormal columns; of one that is not finite, NaN.

    Raises:
      ValueError: no real matrices, a rank out of range, an unknown `sign`.

    Example:
      >>> print(singular_basis(jnp.array([[0.0, 2.0], [-3.0, 0.0]]), 1).T)
      [[0. 1.]]

    Reference: Eckart, Young. The approximation of one matrix by another of lower rank. 1936.
    """
    checks.arrays(x=x)
    if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"singular_basis needs real matrices (..., n, m), got {x.dtype}{list(x.shape)}")
    checks.integer("rank", rank, 1)
    checks.choice("sign", sign, SIGNS)
    if rank > min(x.shape[-2:]):
        raise ValueError(f"rank must be an integer in [1, {min(x.shape[-2:])}], got {rank!r}")
    wide = x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.dtype(jnp.float32)
    U = one_by_one(partial(jnp.linalg.svd, full_matrices=False), x.astype(wide))[0][..., :rank]
    if sign == "fixed":
        largest = jnp.argmax(jnp.abs(U), axis=-2, keepdims=True)
        U = jnp.where(jnp.take_along_axis(U, largest, axis=-2) < 0, -U, U)
    return U.astype(x.dtype)
