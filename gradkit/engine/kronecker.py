"""Statistics, their roots and products along axes, for methods with one matrix per axis of a tensor.

The equations are in the docstring of `gk.shampoo`. All functions work on a batch of tensors along a leading axis.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.engine.accumulators import ema
from gradkit.engine.core import bias_correction, scalar, wide_dtype
from gradkit.linalg import eigenbasis, inverse_root

# Why the cards of such methods opt out of the point `layout`.
BY_LAYOUT = {
    "layout": "axes that are no stack are axes of one tensor; tests/papers/test_shampoo.py has its stacks",
}


def statistic(G: jax.Array, axis: int, *, diagonal: bool = False) -> jax.Array:
    """S_i of one axis of every tensor (counted without the batch axis), or its diagonal: G contracted with itself over
    all other axes.

    >>> statistic(jnp.array([[[1.0, 2.0], [0.0, 3.0]]]), 0).tolist()
    [[[5.0, 6.0], [6.0, 9.0]]]
    """
    if diagonal:
        return jnp.sum(jnp.square(G), axis=[a for a in range(1, G.ndim) if a != axis + 1])
    x = jnp.moveaxis(G, axis + 1, 1).reshape(*G.shape[:1], G.shape[axis + 1], -1)
    return jnp.matmul(x, jnp.swapaxes(x, 1, 2), precision="highest")


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """The matrix product, in full precision on every device."""
    return jnp.matmul(x, y, precision="highest")


def along(P: jax.Array, G: jax.Array, axis: int) -> jax.Array:
    """The product of every tensor with a matrix (or a diagonal) along one axis: sum_j P[i, j] G[..., j, ...].

    >>> along(jnp.array([[2.0, 3.0]]), jnp.ones((1, 2, 2)), 0).tolist()
    [[[2.0, 2.0], [3.0, 3.0]]]
    """
    x = jnp.moveaxis(G, axis + 1, 1)
    rest = x.shape[2:]
    x = x.reshape(*x.shape[:2], -1)
    x = jnp.expand_dims(P, 2) * x if P.ndim == 2 else product(P, x)
    return jnp.moveaxis(x.reshape(*x.shape[:2], *rest), 1, axis + 1)


def along_all(P: Sequence[jax.Array | None], G: jax.Array) -> jax.Array:
    """The product along every axis that has a matrix."""
    for axis, one in enumerate(P):
        G = G if one is None else along(one, G, axis)
    return G


def bounded(G: jax.Array) -> jax.Array:
    """A batch of gradients (B, ...), each shortened where its squares or their roots would overflow: above 1e14 in
    float32.

    >>> bounded(jnp.array([[1.0, 2.0], [1e25, 2e25]])).tolist()
    [[1.0, 2.0], [140737488355328.0, 281474976710656.0]]
    """
    most = np.asarray(2.0 ** (3 * jnp.finfo(G.dtype).maxexp // 8), G.dtype)
    largest = jnp.max(jnp.abs(G), axis=tuple(range(1, G.ndim)), keepdims=True, initial=0)
    return G * (most / jnp.maximum(largest, most))


def accumulate(old: jax.Array, new: jax.Array, b2: Any) -> jax.Array:
    """The sum of old and new where b2 = 1, else the running mean."""
    if type(b2) in (int, float):
        return old + new if b2 == 1 else ema(old, new, b2)
    b = scalar(b2, old)
    return b * old + jnp.where(b == 1, jnp.ones((), b.dtype), 1 - b) * new


def correction(b2: Any, count: jax.Array, like: jax.Array) -> jax.Array:
    """c_t: 1 - b2^t, and 1 where b2 = 1."""
    if type(b2) in (int, float) and b2 == 1:
        return jnp.ones((), like.dtype)
    c = bias_correction(b2, count, like)
    return jnp.where(scalar(b2, c) == 1, jnp.ones((), c.dtype), c)


class Factors(NamedTuple):
    """Per axis a statistic and its root; how many roots of a tensor came out not finite, and were not used."""

    L: tuple[jax.Array, ...]
    P: tuple[jax.Array, ...]
    failed: jax.Array


def init_factors(rows: int, dims: Sequence[int], dtype: Any, diagonal: Sequence[bool]) -> tuple[Any, Any]:
    """Statistics of zero and identity roots; `diagonal` says for which axes only the diagonal is kept."""
    pairs = list(zip(dims, diagonal, strict=True))
    L = tuple(jnp.zeros((rows, d) if short else (rows, d, d), dtype) for d, short in pairs)
    P = tuple(
        jnp.ones((rows, d), dtype) if short else jnp.tile(jnp.eye(d, dtype=dtype)[None], (rows, 1, 1))
        for d, short in pairs
    )
    return L, P


def roots(
    factors: Factors, exponents: Sequence[Any], c: jax.Array, eps: Any, solver: str, *, power_of_trace: Any = 0
) -> Factors:
    """Roots of the statistics; one that is not finite is replaced by the previous one, and counted unless the statistic
    is 0.

    At least finfo.eps times its trace is added to a matrix, unless eps is 0: smaller eigenvalues are rounding, which an
    inverse root would amplify most. The first root is multiplied by the trace of L_1 to the power `power_of_trace`.
    """
    P, failed = [], factors.failed
    for axis, (L, old, e) in enumerate(zip(factors.L, factors.P, exponents, strict=True)):
        wide = L.astype(wide_dtype(L.dtype))
        L_hat = wide / c.astype(wide.dtype)
        trace = jnp.sum(L_hat, axis=1) if L.ndim == 2 else jnp.trace(L_hat, axis1=1, axis2=2)
        if L.ndim == 2:
            new = (L_hat + scalar(eps, L_hat)) ** (-e)
        else:
            rounding, given = float(jnp.finfo(L_hat.dtype).eps) * trace, scalar(eps, trace)
            added = jnp.where(given > 0, jnp.maximum(given, rounding), 0)
            new = inverse_root(L_hat, 1 / e, eps=added, method=solver)
        if axis == 0 and power_of_trace:
            new = new * (trace**power_of_trace).reshape(-1, *[1] * (L.ndim - 1))
        good = jnp.isfinite(new)
        if L.ndim == 3:
            good = jnp.all(good, axis=(1, 2), keepdims=True)
            failed = failed + (~good[:, 0, 0] & (trace != 0)).astype(jnp.int32)
        P.append(jnp.where(good, new.astype(old.dtype), old))
    return factors._replace(P=tuple(P), failed=failed)


def merge_backwards(dims: Sequence[int], limit: int) -> tuple[int, ...]:
    """Axes of length 1 dropped; from the last to the first, axes joined while their product is within the limit.

    >>> merge_backwards((2, 1, 4, 6), 8), merge_backwards((1, 1), 8)
    ((8, 6), (1,))
    """
    out: list[int] = []
    for d in reversed([d for d in dims if d != 1]):
        if out and out[-1] * d <= limit:
            out[-1] *= d
        else:
            out.append(d)
    return tuple(reversed(out)) or (1,)


def merge_forwards(dims: Sequence[int], limit: int) -> tuple[int, ...]:
    """From the first to the last, axes joined while their product is within the limit.

    >>> merge_forwards((2, 4, 6), 8), merge_forwards((1, 9, 2, 3), 8)
    ((8, 6), (9, 6))
    """
    out, current = [], 1
    for d in dims:
        if current * d <= limit:
            current *= d
        elif current > 1:
            out.append(current)
            current = d
        else:
            out.append(d)
            current = 1
    return (*out, current) if current > 1 or not out else tuple(out)


Matrices = Sequence[jax.Array | None]


def transposes(Q: Matrices) -> list[jax.Array | None]:
    """The rotation into the bases: Q^T of every axis that has a basis."""
    return [None if q is None else jnp.swapaxes(q, 1, 2) for q in Q]


def first_bases(S: Matrices) -> tuple[jax.Array | None, ...]:
    """The eigenvectors of every statistic, largest eigenvalue first."""
    return tuple(None if s is None else eigenbasis(s).vectors for s in S)


def next_bases(S: Matrices, Q: Matrices) -> tuple[tuple[jax.Array | None, ...], tuple[jax.Array | None, ...]]:
    """One step of the power method from every basis; and for each new column the index of the one that it continues."""
    made = [(None, None) if s is None else eigenbasis(s, q, method="qr") for s, q in zip(S, Q, strict=True)]
    return tuple(q for q, _ in made), tuple(order for _, order in made)


def reorder(x: jax.Array, orders: Matrices) -> jax.Array:
    """Tensors whose entries are put along every axis in the order given for it."""
    for axis, order in enumerate(orders):
        if order is not None:
            along_axis = order.reshape(-1, *[order.shape[1] if a == axis else 1 for a in range(x.ndim - 1)])
            x = jnp.take_along_axis(x, along_axis, axis=axis + 1)
    return x
