"""Linear systems with a second-moment matrix, damped so that they always have one solution."""

from functools import partial

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.linalg.one_by_one import one_by_one
from gradkit.types import Scalar


def resolved(damping: Scalar, moment: jax.Array) -> jax.Array:
    """The damping, raised to where a sum with the moment can be told from a singular matrix: n times the relative
    rounding of its largest entry on the diagonal. Below, whether a factor exists is decided by rounding.

    Args:
      damping: >= 0, a number or a traced scalar.
      moment: (..., n, n), positive semidefinite up to rounding.

    Returns:
      (..., 1, 1), in the dtype of the moment.

    >>> print(resolved(1e-12, jnp.ones((2, 2))))
    [[2.3841858e-07]]
    """
    largest = jnp.max(jnp.abs(jnp.diagonal(moment, axis1=-2, axis2=-1)), axis=-1, initial=0)
    least = moment.shape[-1] * jnp.finfo(moment.dtype).eps * largest
    return jnp.maximum(jnp.asarray(damping).astype(moment.dtype), least)[..., None, None]


def damped_solve(moment: jax.Array, rhs: jax.Array, damping: Scalar) -> jax.Array:
    """(moment + damping I)^{-1} rhs, by Cholesky.

    Args:
      moment: symmetric and positive semidefinite, shape (..., n, n).
      rhs: shape (..., n, m); the axes in front are those of `moment`, or there are none on one side.
      damping: > 0, a number or a traced scalar; raised where it is below the rounding of `moment`, so that there is
        always one solution.

    Returns:
      Shape (..., n, m), in the dtype of `rhs`; computed in float32 or wider.

    Raises:
      ValueError: a damping that is not positive; a moment that is no square matrix.

    Example:
      >>> print(damped_solve(jnp.diag(jnp.array([1.0, 3.0])), jnp.ones((2, 1)), 1.0).T.round(4))
      [[0.5  0.25]]
    """
    checks.arrays(moment=moment, rhs=rhs)
    checks.real("damping", damping, "(0, inf)")
    if moment.ndim < 2 or moment.shape[-1] != moment.shape[-2]:
        raise ValueError(f"moment must be square matrices, got shape {moment.shape}")
    dtype = rhs.dtype if jnp.finfo(rhs.dtype).bits >= 32 else jnp.dtype(jnp.float32)
    n = moment.shape[-1]
    eye = jnp.eye(n, dtype=dtype).reshape((1,) * (moment.ndim - 2) + (n, n))
    moment = moment.astype(dtype)
    factor = one_by_one(jnp.linalg.cholesky, moment + resolved(damping, moment) * eye)
    lead = jnp.broadcast_shapes(moment.shape[:-2], rhs.shape[:-2])
    factor, x = (jnp.broadcast_to(a, lead + a.shape[-2:]) for a in (factor, rhs.astype(dtype)))
    solve = partial(jax.lax.linalg.triangular_solve, left_side=True, lower=True)
    x = one_by_one(partial(solve, transpose_a=True), factor, one_by_one(solve, factor, x))
    return x.astype(rhs.dtype)
