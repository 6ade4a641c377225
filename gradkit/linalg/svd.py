"""The singular value decomposition with signs that do not depend on the linear algebra library."""

from functools import partial

import jax
import jax.numpy as jnp

from gradkit.linalg.one_by_one import one_by_one


def with_fixed_signs(U: jax.Array, Vt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Pairs of singular vectors, with signs such that the entry of largest magnitude of the left one is positive."""
    largest = jnp.take_along_axis(U, jnp.argmax(jnp.abs(U), axis=-2, keepdims=True), axis=-2)
    sign = jnp.where(largest < 0, -jnp.ones_like(largest), jnp.ones_like(largest))
    return U * sign, Vt * jnp.swapaxes(sign, -1, -2)


def signed_svd(w: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Thin U (..., n, p), S (..., p), V^T (..., p, m) with the signs of `with_fixed_signs`, in float32 or wider.

    >>> U, S, Vt = signed_svd(jnp.array([[0.0, -2.0], [1.0, 0.0]]))
    >>> (U + 0.0).tolist(), S.tolist(), (Vt + 0.0).tolist()  # no -0
    ([[1.0, 0.0], [0.0, 1.0]], [2.0, 1.0], [[0.0, -1.0], [1.0, 0.0]])
    """
    wide = w if jnp.finfo(w.dtype).bits >= 32 else w.astype(jnp.float32)
    U, S, Vt = one_by_one(partial(jnp.linalg.svd, full_matrices=False), wide)
    U, Vt = with_fixed_signs(U, Vt)
    return U, S, Vt
