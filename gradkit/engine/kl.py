"""KL-Shampoo's factors of a tensor: second moments of every axis, whitened by the other axes, and their eigenvalues."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit.engine.accumulators import ema
from gradkit.engine.blocks import factor_sources
from gradkit.engine.core import scalar
from gradkit.engine.kronecker import along, along_all, product, statistic, transposes
from gradkit.engine.kronecker import first_bases as first_bases
from gradkit.engine.parts import beside
from gradkit.linalg.eigenbasis import fix_signs
from gradkit.linalg.one_by_one import one_by_one

EIGENVALUES = ("ema", "rayleigh")


class Factors(NamedTuple):
    """Per axis the second moments (B, d, d) and the basis (B, d, d), None where it is not rotated; and the inverse
    roots of the eigenvalues (B, d, 1)."""

    S: tuple[Any, ...]
    Q: tuple[Any, ...]
    r: tuple[Any, ...]


def rotated(dims: Sequence[int], max_dim: int) -> list[bool]:
    """Which axes of a tensor have a basis: of a vector none."""
    return [len(dims) > 1 and d <= max_dim for d in dims]


def made(rows: int, dims: Sequence[int], dtype: Any, max_dim: int, init_factor: Any) -> Factors:
    """The factors at the start, as parts of a state."""
    groups = [(a,) for a in range(len(dims))]
    S: list[Any] = [None] * len(dims)
    Q, r = list(S), list(S)
    start = jnp.asarray(init_factor).astype(dtype) ** -0.5
    for i, (d, on) in enumerate(zip(dims, rotated(dims, max_dim), strict=True)):
        r[i] = beside(jnp.ones((rows, d, 1), dtype) * start, ((i,), ()))
        if on:
            S[i] = beside(jnp.zeros((rows, d, d), dtype), factor_sources(groups, i))
            Q[i] = beside(jnp.tile(jnp.eye(d, dtype=dtype)[None], (rows, 1, 1)), factor_sources(groups, i))
    return Factors(tuple(S), tuple(Q), tuple(r))


def moments(f: Factors, G: jax.Array, beta: Any) -> tuple[Any, ...]:
    """The second moments after the first call, which depend only on the gradient."""
    d = math.prod(G.shape[1:])
    return tuple(
        None if s is None else ema(s, statistic(G, i) / (d // G.shape[i + 1]), beta) for i, s in enumerate(f.S)
    )


def later(
    f: Factors,
    G: jax.Array,
    rotated: jax.Array,
    beta: Any,
    *,
    eigenvalues: str,
    eps: Any,
    damping: Any,
    most: int | None,
) -> Factors:
    """The factors after a later call, except for their bases; `rotated` is G in the bases.

    Equations, for axes i of lengths d_i with the product d; Q_i the basis of an axis (the identity where it has none),
    lambda_i its eigenvalues, r_i = lambda_i^(-1/2); all right sides are from before the call:

        S_i = beta S_i + (1 - beta) / (d / d_i) X X^T           X = G times Q_j diag(r_j) on all other axes j, flattened
        a_i = mean over the other axes of (Q^T G on every axis, times r_j on all other axes j)^2
        lambda_i = beta lambda_i + (1 - beta) a_i               eigenvalues="ema"
        lambda_i = diag(Q_i^T S_i Q_i), at least eps            eigenvalues="rayleigh"
    """
    d, S, r = math.prod(G.shape[1:]), [], []
    roots = [x[..., 0] for x in f.r]
    means = [jnp.mean(jnp.square(x), axis=1) for x in roots]
    for i, (s, q, own) in enumerate(zip(f.S, f.Q, roots, strict=True)):
        others = [j for j in range(len(roots)) if j != i]
        rest = d // G.shape[i + 1]
        new = None
        if s is not None:
            white = G
            for j in others:
                white = white if f.Q[j] is None else along(jnp.swapaxes(f.Q[j], 1, 2), white, j)
                white = along(roots[j], white, j)
            new = ema(s, statistic(white, i) / rest, beta)
        if eigenvalues == "rayleigh" and new is not None:
            values = jnp.maximum(jnp.sum(q * product(new, q), axis=1), scalar(eps, own))
        else:
            seen = rotated
            for j in others:
                seen = along(roots[j], seen, j)
            a = jnp.mean(jnp.square(seen), axis=[k + 1 for k in others]) if others else jnp.square(seen)
            a = a + scalar(damping, a) * math.prod([means[j] for j in others], start=jnp.ones_like(means[0]))[:, None]
            before = jnp.where(own > 0, 1 / jnp.square(jnp.where(own > 0, own, 1)), 0)
            values = ema(before, a, beta)
        root = jnp.where(values > 0, jax.lax.rsqrt(jnp.where(values > 0, values, 1)), 0)
        if most is not None:
            root = jnp.minimum(root, jnp.asarray(max(10, min(own.shape[1], most)), root.dtype))
        S.append(new)
        r.append(root[..., None])
    return Factors(tuple(S), f.Q, tuple(r))


def next_bases(S: Sequence[Any], Q: Sequence[Any]) -> tuple[Any, ...]:
    """One step of the power method, Q_i = qr(S_i Q_i).Q, with columns in the order of the previous bases.

    finfo.eps times the mean eigenvalue is added to S, so that a column in the null space of S does not change.
    """
    out = []
    for s, q in zip(S, Q, strict=True):
        if s is None:
            out.append(None)
            continue
        shift = float(jnp.finfo(s.dtype).eps) * jnp.trace(s, axis1=1, axis2=2) / s.shape[1]
        # Where S is zero the columns do not change either.
        shift = jnp.where(shift > 0, shift, jnp.ones_like(shift))[:, None, None]
        out.append(fix_signs(one_by_one(jnp.linalg.qr, product(s, q) + shift * q)[0]))
    return tuple(out)


def into(Q: Sequence[Any], x: jax.Array) -> jax.Array:
    """A tensor rotated into the bases."""
    return along_all(transposes(Q), x)
