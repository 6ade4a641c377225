"""What is computed anew only every so many steps: for all matrices at once, or for each at a step of its own.

t = start                  all matrices
t > start, together        all matrices where the interval divides t
t > start, staggered       matrix i where it divides t + i mod interval: a share of 1 / interval of them at every step

Together the work stands under one `lax.cond`; staggered it is a loop over those that are due, one after another. Under
`vmap` over seeds both stay what they are, also where every member counts its own steps.
"""

import functools
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


def due(t: jax.Array, start: int, interval: int, phase: jax.Array | None = None) -> jax.Array:
    """Whether something is computed anew at step t: a scalar, or with phases one for each matrix.

    >>> [bool(due(jnp.int32(t), 2, 3)) for t in (1, 2, 3, 4, 6)]
    [False, True, True, False, True]
    >>> [due(jnp.int32(t), 0, 3, jnp.arange(3)).tolist() for t in (0, 1)]
    [[True, True, True], [False, False, True]]
    """
    if phase is None:
        return (t == start) | ((t > start) & (t % interval == 0))
    return (phase >= 0) & ((t == start) | ((t > start) & ((t + phase) % interval == 0)))


@custom_vmap
def anywhere(due: jax.Array) -> jax.Array:
    """A condition that under `vmap` is met where it is met for any member, and stays one condition."""
    return due


@anywhere.def_vmap
def _anywhere_of_many(size: int, batched: list[bool], due: jax.Array) -> tuple[jax.Array, bool]:
    del size, batched
    return anywhere(jnp.any(due, axis=0)), False


def _chosen(take: jax.Array, new: Any, old: Any) -> Any:
    """The new where it is to be taken: by a scalar, or row by row; in the dtypes of the old."""

    def one(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(take.reshape(*take.shape, *[1] * (x.ndim - 1)) if take.ndim else take, x, y).astype(y.dtype)

    return jax.tree.map(one, new, old)


def renewed(due: jax.Array, fresh: Callable[[Any, Any], Any], given: Any, old: Any) -> Any:
    """What is renewed only where it is due.

    Args:
      due: a boolean scalar, or (B,), one for each matrix.
      fresh: (given, old) -> a tree like old, of every matrix for itself; no collectives.
      given: a tree of arrays (B, ...), what it is made of.
      old: a tree of arrays (B, ...).

    >>> old = jnp.zeros(3)
    >>> renewed(jnp.array([True, False, True]), lambda x, y: x + y, jnp.arange(1.0, 4.0), old).tolist()
    [1.0, 0.0, 3.0]
    """
    if not due.ndim:

        def anew() -> Any:
            return _chosen(due, fresh(given, old), old)

        return jax.lax.cond(anywhere(due), anew, lambda: old)

    some = anywhere(due)
    order = jnp.argsort(~some)

    def one(k: jax.Array, tree: Any) -> Any:
        row = partial(jax.lax.dynamic_slice_in_dim, start_index=order[k], slice_size=1)
        before = jax.tree.map(row, tree)
        after = _chosen(row(due), fresh(jax.tree.map(row, given), before), before)
        return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, order[k], 0), tree, after)

    return jax.lax.fori_loop(0, jnp.sum(some, dtype=jnp.int32), one, old)


def renewable(due: jax.Array, x: jax.Array, bases: Any) -> jax.Array:
    """Which bases may be made of x, (B,): a matrix of zeros has no directions of its own and makes no basis, and one
    that has none yet makes it as soon as it is not zero.

    Args:
      due: a boolean scalar, or (B,), whether a new basis is due.
      x: (B, n, m), what bases are made of.
      bases: a tree of arrays (B, ...), which are zero as long as there is none.

    >>> x, bases = jnp.array([0.0, 1.0, 1.0, 1.0]), jnp.array([1.0, 1.0, 0.0, 1.0])
    >>> due = jnp.array([True, False, False, True])
    >>> renewable(due, x.reshape(4, 1, 1), bases.reshape(4, 1, 1)).tolist()
    [False, False, True, True]
    """

    def empty(x: jax.Array) -> jax.Array:
        return (x == 0).all(axis=tuple(range(1, x.ndim)))

    missing = functools.reduce(operator.and_, map(empty, jax.tree.leaves(bases)))
    return ~empty(x) & (due | missing)


def refreshed(
    due: jax.Array,
    fresh: Callable[[Any, Any], Any],
    given: Any,
    old: Any,
    failed: jax.Array,
    *,
    rows: jax.Array | None = None,
) -> tuple[Any, jax.Array]:
    """`renewed`, but a matrix for which the new tree is not finite keeps its old one; and how often that was so.

    Args:
      due: a boolean scalar, or (B,), one for each matrix.
      fresh: (given, old) -> a tree like old, of every matrix for itself; no collectives.
      given: a tree of arrays (B, ...), what it is made of.
      old: a tree of arrays (B, ...).
      failed: (B,) int32, how often each matrix kept its old one.
      rows: (B,), the matrices that are renewed instead of those that are due: all of them at once where `due` is a
        scalar, one after another where it is not. Default None: those that are due.

    >>> old, failed = jnp.zeros((2, 1, 1)), jnp.zeros(2, jnp.int32)
    >>> new = jnp.array([jnp.nan, 3.0]).reshape(2, 1, 1)
    >>> got, failed = refreshed(jnp.array(True), lambda x, _: x, new, old, failed)
    >>> got.ravel().tolist(), failed.tolist()
    ([0.0, 3.0], [1, 0])
    """
    if rows is not None:
        due, rows = (rows, None) if due.ndim else (jnp.any(rows), rows)

    def checked(given: Any, both: Any) -> Any:
        (given, rows), (old, failed) = given, both
        new = fresh(given, old)
        good = jnp.ones(failed.shape, bool)
        for x in jax.tree.leaves(new):
            good &= jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))
        bad = ~good if rows is None else ~good & rows
        return _chosen(good if rows is None else good & rows, new, old), failed + bad.astype(failed.dtype)

    return renewed(due, checked, (given, rows), (old, failed))


def failures(counts: Any) -> dict[str, jax.Array]:
    """The metric of a state: how many refreshes failed, of all matrices; the sum of what it has counted."""
    counts = jax.tree.leaves(counts)
    return {"failed_refreshes": sum((jnp.sum(c, dtype=jnp.int32) for c in counts), jnp.zeros((), jnp.int32))}
