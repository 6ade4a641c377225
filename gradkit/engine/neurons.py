"""One second moment per neuron of a matrix, and the size that a matrix keeps: kernels on (B, rows, columns).

A neuron is a column. v_j = b2 v_j + (1 - b2) mean_i O_ij^2,    P_ij = O_ij / (sqrt(v_j) + eps)
"""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit.engine.accumulators import ema
from gradkit.engine.core import divide, scalar


def norms(x: jax.Array) -> jax.Array:
    """The Frobenius norm of every matrix, (B, 1, 1); squares neither overflow nor vanish.

    >>> print(norms(jnp.full((1, 2, 2), 1e-30)).ravel())
    [2.e-30]
    """
    largest = jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True, initial=0)
    y = divide(x, jnp.broadcast_to(largest, x.shape))
    return largest * jnp.sqrt(jnp.sum(jnp.square(y), axis=(1, 2), keepdims=True))


def by_neuron(o: jax.Array, v: jax.Array, b2: Any, eps: Any) -> tuple[jax.Array, jax.Array]:
    """The matrices with their neurons divided by the roots of their second moments, and those, (B, 1, columns).

    >>> P, v = by_neuron(jnp.array([[[3.0, 0.0], [4.0, 0.0]]]), jnp.zeros((1, 1, 2)), 0.0, 0.0)
    >>> print(P[0].round(3), v[0])
    [[0.849 0.   ]
     [1.131 0.   ]] [[12.5  0. ]]
    """
    v = ema(v, jnp.mean(jnp.square(o), axis=1, keepdims=True), b2)
    root = jnp.sqrt(v) + scalar(eps, v)
    return divide(o, jnp.broadcast_to(root, o.shape)), v


def rescaled(P: jax.Array, size: jax.Array, eps: Any) -> jax.Array:
    """The matrices with another Frobenius norm, (B, 1, 1); a matrix of zeros stays zero.

    >>> rescaled(jnp.array([[[3.0, 4.0]]]), jnp.ones((1, 1, 1)), 0.0).round(3).tolist()
    [[[0.6000000238418579, 0.800000011920929]]]
    """
    own = norms(P)
    return P * divide(size, own + scalar(eps, own))
