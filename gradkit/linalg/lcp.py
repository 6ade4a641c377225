"""Linear complementarity: find w with

    w >= 0,    y = G w + q >= 0,    w_i y_i = 0 for every i

for a symmetric positive definite G. It is the minimum of w^T G w / 2 + q^T w over w >= 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks

LIVES = 3


class _Pivoting(NamedTuple):
    """Free variables F, their solution, the variables of wrong sign, and how the search is going."""

    free: jax.Array
    w: jax.Array
    bad: jax.Array
    best: jax.Array
    lives: jax.Array
    iteration: jax.Array


def solve_lcp(G: jax.Array, q: jax.Array, *, max_iters: int = 100) -> jax.Array:
    """Solves a linear complementarity problem by block principal pivoting.

    A variable is free (y_i = 0) or bound (w_i = 0). All those of the wrong sign change sides together as long as
    that makes them fewer, or failed to at most three times in a row; then only the one of largest index does, which
    cannot go in circles when G is positive definite (Murty's rule).

    Args:
      G: (m, m), symmetric positive definite, floating point.
      q: (m,), of the same dtype. For several right-hand sides, `jax.vmap`.
      max_iters: pivots after which the search stops where rounding keeps it from ending, >= 1. Default 100; up to
        m = 32 it takes 1 to 6, rarely 20.

    Returns:
      w: (m,). Where G or q is not finite, NaN throughout. Where the pivots ran out, the last w, made nonnegative.

    Raises:
      ValueError: shapes that do not fit, or `max_iters` < 1.

    Example:
      >>> print(solve_lcp(jnp.eye(2), jnp.array([-3.0, 1.0])))
      [3. 0.]

    Reference: Júdice, Pires. A block principal pivoting algorithm for large-scale strictly monotone linear
    complementarity problems. 1994. Murty. Note on a Bard-type scheme for solving the complementarity problem. 1974.
    """
    checks.arrays(G=G, q=q)
    m = q.shape[0] if q.ndim == 1 else -1
    if G.shape != (m, m):
        raise ValueError(f"solve_lcp needs G of shape (m, m) and q of shape (m,), got {G.shape} and {q.shape}")
    checks.integer("max_iters", max_iters, 1)
    index = jnp.arange(m, dtype=jnp.int32)

    def examine(free: jax.Array) -> tuple[jax.Array, jax.Array]:
        both = free[:, None] & free[None, :]
        w = jnp.linalg.solve(jnp.where(both, G, jnp.eye(m, dtype=G.dtype)), jnp.where(free, -q, 0))
        y = jnp.matmul(G, w, precision=jax.lax.Precision.HIGHEST) + q
        return w, jnp.where(free, w < 0, y < 0)

    def proceed(s: _Pivoting) -> jax.Array:
        return s.bad.any() & (s.iteration < max_iters)

    def pivot(s: _Pivoting) -> _Pivoting:
        # Sums of booleans are int64 where that is enabled; a loop keeps its dtypes.
        n = jnp.sum(s.bad, dtype=jnp.int32)
        better = n < s.best
        block = better | (s.lives > 0)
        last = index == jnp.max(jnp.where(s.bad, index, -1))
        free = s.free ^ jnp.where(block, s.bad, last)
        lives = jnp.where(better, jnp.int32(LIVES), jnp.maximum(s.lives - 1, 0))
        return _Pivoting(free, *examine(free), jnp.minimum(n, s.best), lives, s.iteration + 1)

    free = jnp.zeros_like(q, dtype=bool)
    start = _Pivoting(free, *examine(free), jnp.int32(m + 1), jnp.int32(LIVES), jnp.int32(0))
    w = jnp.maximum(jax.lax.while_loop(proceed, pivot, start).w, 0)
    finite = jnp.isfinite(G).all() & jnp.isfinite(q).all()
    return jnp.where(finite, w, jnp.nan)
