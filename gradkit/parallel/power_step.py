"""One step of subspace iteration, as all replicas take it together: what methods of low rank share.

P^ = orth(mean_w (M_w Q)),   Q_w = M_w^T P^,   Q = mean_w Q_w
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from gradkit.engine.core import scalar
from gradkit.types import Scalar


def orthonormal(P: jax.Array, eps: Any = 0.0) -> jax.Array:
    """Orthonormal columns that span those of matrices (..., n, r): Gram and Schmidt's, in the order of columns.

    eps = 0: twice, and a column that depends on those before it becomes 0, as does a matrix of zeros. eps > 0: once,
    and every norm that is divided by has eps added, as in the paper's code.
    """
    dtype, r = P.dtype, P.shape[-1]
    before = jnp.sqrt(jnp.sum(jnp.square(P), axis=-2))
    # What is left of a dependent column is rounding: that of n products and r projections.
    least = before * (10 * float(jnp.finfo(dtype).eps) * math.sqrt(P.shape[-2] + r))

    def column(i: Any, P: jax.Array, least: jax.Array) -> jax.Array:
        own = jax.lax.dynamic_slice_in_dim(P, i, 1, axis=-1)
        norm = jnp.sqrt(jnp.sum(jnp.square(own), axis=-2, keepdims=True))
        kept = norm > jax.lax.dynamic_slice_in_dim(least, i, 1, axis=-1)[..., None, :]
        by = jnp.where(kept, norm + scalar(eps, norm), jnp.ones_like(norm))
        own = jnp.where(kept, own / by, jnp.zeros_like(own))
        shares = jnp.sum(own * P, axis=-2, keepdims=True)
        later = jnp.arange(r).reshape(*[1] * (P.ndim - 1), r) > i
        P = P - own * jnp.where(later, shares, jnp.zeros_like(shares))
        return jax.lax.dynamic_update_slice_in_dim(P, own, i, axis=-1)

    P = jax.lax.fori_loop(0, r, lambda i, P: column(i, P, least), P)
    if type(eps) in (int, float) and eps == 0:
        P = jax.lax.fori_loop(0, r, lambda i, P: column(i, P, jnp.zeros_like(least)), P)
    return P


def power_step(M: jax.Array, Q: jax.Array, mean: Any, eps: Scalar = 0.0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(P^, Q, own Q) of one two-sided step on matrices (..., n, m) and columns (..., m, r); `mean` is over replicas."""
    P = orthonormal(mean(product(M, Q)), eps)
    own = product(jnp.swapaxes(M, -1, -2), P)
    return P, mean(own), own


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")
