"""Kronecker factors that whiten a tensor: PSGD's kernels, on ONE tensor with one factor per axis.

A factor of an axis of length d is upper triangular (d, d), or diagonal, kept as a column (d, 1).
P = Q^T Q on every axis.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from gradkit.linalg.one_by_one import one_by_one

Factors = Sequence[jax.Array]


def is_diagonal(q: jax.Array) -> bool:
    """Whether a factor is a column. A factor of one entry is the same either way."""
    return q.shape[1] == 1


def _on_axis(q: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    if is_diagonal(q):
        return x * q.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    return jnp.moveaxis(jnp.tensordot(q, x, ((1,), (axis,))), 0, axis)


def whiten(factors: Factors, x: jax.Array) -> jax.Array:
    """Q on every axis."""
    for axis, q in enumerate(factors):
        x = _on_axis(q, x, axis)
    return x


def whiten_back(factors: Factors, x: jax.Array) -> jax.Array:
    """Q^T on every axis: after `whiten`, the preconditioned tensor."""
    for axis, q in enumerate(factors):
        x = _on_axis(q if is_diagonal(q) else q.T, x, axis)
    return x


def unwhiten(factors: Factors, x: jax.Array) -> jax.Array:
    """Q^{-T} on every axis."""
    for axis, q in enumerate(factors):
        if is_diagonal(q):
            x = x / q.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
            continue
        front = jnp.moveaxis(x, axis, 0)
        solved = one_by_one(partial(jax.scipy.linalg.solve_triangular, trans="T"), q, front.reshape(q.shape[0], -1))
        x = jnp.moveaxis(solved.reshape(front.shape), 0, axis)
    return x


def _second_moment(x: jax.Array, axis: int, diagonal: bool) -> jax.Array:
    """x x^T contracted over the other axes; its diagonal, as a column."""
    rows = jnp.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    return jnp.sum(jnp.square(rows), axis=1, keepdims=True) if diagonal else rows @ rows.T


def norm_lower_bound(a: jax.Array) -> jax.Array:
    """A lower bound of the spectral norm of a symmetric matrix, off by less than a few percent in practice.

    One step of the power method and one back, from the column of largest norm. 0 of a matrix of zeros.
    """
    largest = jnp.max(jnp.abs(a))
    a = a / jnp.where(largest > 0, largest, jnp.ones_like(largest))
    x = jnp.take(a, jnp.argmax(jnp.sum(jnp.square(a), axis=0)), axis=1)
    y = a @ x
    length = jnp.linalg.norm(y)
    return largest * jnp.linalg.norm(a @ (y / jnp.where(length > 0, length, jnp.ones_like(length))))


def refreshed(factors: Factors, g: jax.Array, v: jax.Array, rate: jax.Array) -> list[jax.Array]:
    """One step of the factors towards E[P g g^T P] = I, along the group of triangular matrices.

    Args:
      factors: one per axis.
      g: the tensor.
      v: standard normal numbers of its shape.
      rate: step size.
    """
    damping = math.sqrt(float(jnp.finfo(jnp.float32).eps))
    g = g + damping * jnp.mean(jnp.abs(g)) * v
    a, c = whiten(factors, g), unwhiten(factors, v)
    new = []
    for axis, q in enumerate(factors):
        t1, t2 = (_second_moment(x, axis, is_diagonal(q)) for x in (a, c))
        total = t1 + t2
        norm = jnp.max(jnp.abs(total)) if is_diagonal(q) else norm_lower_bound(total)
        step = rate / jnp.where(norm > 0, norm, jnp.ones_like(norm))
        new.append(q - step * (t1 - t2) * q if is_diagonal(q) else q - step * jnp.triu(t1 - t2) @ q)
    return new


def balanced(factors: Factors) -> list[jax.Array]:
    """The same P from factors whose largest entries are equal."""
    largest = [jnp.max(jnp.abs(q)) for q in factors]
    mean = jnp.exp(sum((jnp.log(x) for x in largest[1:]), jnp.log(largest[0])) / len(factors))
    return [q * (mean / x) for q, x in zip(factors, largest, strict=True)]
