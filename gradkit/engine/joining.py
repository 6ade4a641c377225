"""The tensors of many leaves as one stack, and a stack as the tensors of its leaves, on one device.

    leaves (3, n, m), (n, m), (n, m)      --rows of all, one below another-->      (5 n, m)      -->      (5, n, m)

The leaves are joined row by row: a leaf that is a matrix already is joined, and separated, without a shape between.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.engine.matrices import Slot, Stack
from gradkit.engine.refreshes import anywhere
from gradkit.engine.works import Part, Work, put
from gradkit.leaves import from_matrices, to_matrices

Views = list[Any]  # of every leaf its matrices, or itself where it is nothing but matrices
# On CPU, above this many bytes of updates and state, stacks are worked on one after another. XLA's scheduler for CPUs
# would begin all of them at once and hold copies of all that they read: more than the caches hold, and above 32 MiB
# more than the C library keeps from one step to the next, so that half of a step went into getting the pages anew.
IN_ORDER = 1 << 24


def is_plain(work: Work, leaf: int) -> bool:
    """Whether a leaf is matrices in the order of its own axes, none of them fused."""
    axes = work.plan.axes[leaf]
    order = (*work.batch(leaf), *axes.inputs, *axes.outputs)
    return not axes.splits and order == tuple(range(len(order)))


def views(work: Work, leaves: Sequence[jax.Array]) -> Views:
    """A tree's leaves as matrices."""
    return [x if is_plain(work, i) else to_matrices(x, work.plan.axes[i]) for i, x in enumerate(leaves)]


def _rows(pieces: Sequence[jax.Array], shape: Sequence[int]) -> jax.Array:
    """Arrays (..., *shape) as one array (B, *shape)."""
    flat = [x.reshape(-1, *shape[1:]) for x in pieces]
    return (jnp.concatenate(flat) if len(flat) > 1 else flat[0]).reshape(-1, *shape)


def _of_slots(stack: Stack, x: jax.Array) -> list[jax.Array]:
    """The tensors (count, ...) of every slot of a stack, those of a slot one below another."""
    ends = list(itertools.accumulate((slot.count for slot in stack.slots), initial=0))
    if x.ndim == 1:
        return [jax.lax.slice_in_dim(x, a, b) for a, b in itertools.pairwise(ends)]
    flat, d = x.reshape(-1, *x.shape[2:]), x.shape[1]
    return [jax.lax.slice_in_dim(flat, a * d, b * d) for a, b in itertools.pairwise(ends)]


def _orders(work: Work, s: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The lengths of a tensor's axes as its matrix has them; the order of the axes from there, and the way back."""
    dims, places = work.dims[s], work.places[s]
    forth = (0, *(p + 1 for p in places))
    flat = tuple(dims[places.index(i)] for i in range(len(dims)))
    return flat, forth, tuple(int(i) for i in np.argsort(forth))


def tensors(work: Work, s: int, seen: Views) -> jax.Array:
    """The tensors of a stack, (B, d_1, ..., d_k)."""
    stack, (flat, forth, _) = work.plan.stacks[s], _orders(work, s)

    def one(slot: Slot) -> jax.Array:
        x = seen[slot.leaf]
        if isinstance(x, tuple):
            x = x[slot.part]
        elif slot.turned:
            x = x.reshape(slot.count, stack.m, stack.n)
        return jnp.swapaxes(x, 1, 2) if slot.turned else x

    return _rows([one(slot) for slot in stack.slots], (stack.n, stack.m)).reshape(-1, *flat).transpose(forth)


def weights(stack: Stack, seen: Views) -> dict[int, Any]:
    """The weights that a stack has of leaves, in the form of `leaves_of`."""
    out: dict[int, Any] = {}
    for slot in stack.slots:
        x = seen[slot.leaf]
        out.setdefault(slot.leaf, {})[slot.part] = x[slot.part] if isinstance(x, tuple) else x
    return out


def leaves_of(work: Work, s: int, y: jax.Array) -> dict[int, Any]:
    """The weights that a stack has of its leaves: per leaf, by their numbers."""
    stack, (_, _, back) = work.plan.stacks[s], _orders(work, s)
    y = y.reshape(-1, *work.dims[s]).transpose(back).reshape(-1, stack.n, stack.m)
    out: dict[int, Any] = {}
    for slot, z in zip(stack.slots, _of_slots(stack, y), strict=True):
        if slot.turned:
            z = jnp.swapaxes(z.reshape(slot.count, stack.n, stack.m), 1, 2)
        plain = is_plain(work, slot.leaf)
        n, m = (stack.m, stack.n) if slot.turned else (stack.n, stack.m)
        shape = work.plan.shapes[slot.leaf] if plain else (slot.count, n, m)
        out.setdefault(slot.leaf, {})[slot.part] = z.reshape(shape)
    return out


def leaf_of(work: Work, leaf: int, parts: dict[int, jax.Array] | None, old: jax.Array) -> jax.Array:
    """A leaf of its weights; the old one where it has no entries."""
    if not parts:
        return old
    if is_plain(work, leaf):
        return parts[0]
    return from_matrices([parts[j] for j in sorted(parts)], old.shape, work.plan.axes[leaf])


def joined(pieces: Sequence[jax.Array], part: Part) -> jax.Array:
    """What leaves keep of the tensors of a stack, (B, ...)."""
    return _rows(pieces, part.value.shape[1:])


def separated(work: Work, s: int, x: jax.Array, path: Any, part: Part) -> dict[int, Any]:
    """What is kept of the tensors of a stack, under its keys, per leaf."""
    stack, out = work.plan.stacks[s], {}
    for slot, piece in zip(stack.slots, _of_slots(stack, x), strict=True):
        batch = tuple(work.plan.shapes[slot.leaf][a] for a in work.batch(slot.leaf))
        put(out.setdefault(slot.leaf, {}), work.piece(slot, path, part), piece.reshape(*batch, *x.shape[1:]))
    return out


def bytes_of(tree: Any) -> int:
    """Of all arrays of a tree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def in_order(tree: Any) -> bool:
    """Whether the stacks of a tree are worked on one after another."""
    return jax.default_backend() == "cpu" and bytes_of(tree) > IN_ORDER


def after(before: jax.Array, work: Callable[[], Any], unchanged: Callable[[], Any]) -> Any:
    """A computation that begins when another one is done.

    Args:
      before: an array that the other one has made.
      work: the computation.
      unchanged: the same tree of shapes, which is never computed.

    >>> after(jnp.full(2, jnp.nan), lambda: jnp.ones(1), lambda: jnp.zeros(1)).tolist()
    [1.0]
    """
    # The compiler removes a barrier before it decides on the order, and so it does with what it knows to be true. It
    # does not know that the lowest bit of a number is below 2.
    bits = jax.lax.bitcast_convert_type(before.reshape(-1)[:1].astype(jnp.float32), jnp.int32)[0]
    return jax.lax.cond(anywhere((bits & 1) < 2), work, unchanged)
