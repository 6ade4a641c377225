"""How matrices get from leaves into a stack, and results from a stack into leaves, on one device and between devices.

    leaves (3, n, m), (n, m), (n, m)      --rows of all, one below another-->      (5 n, m)      -->      (5, n, m)

The leaves are joined row by row: a leaf that is a matrix already is joined, and separated, without a shape between.
Then, on a mesh, every matrix goes to its owner, and its result back the mirrored way:

    leaf replicated                            its own slice                    all-gather of all such stacks together
    leaf sharded along inputs or outputs       one all-to-all per stack         one all-to-all per stack
    leaf sharded along a batch axis            what it holds                    nothing
    the only matrix of its stack, if something is kept of it: an all-gather of its shards, and nothing back

A device receives B n m / N words in an all-to-all.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.engine.backend import rows_between
from gradkit.engine.placement import in_order_of_leaf
from gradkit.engine.stacks import Plan, Slot, Stack
from gradkit.leaves import from_matrices, to_matrices

Views = list[Any]  # of every leaf its matrices, or itself where it is nothing but matrices


def is_plain(plan: Plan, leaf: int) -> bool:
    """Whether a leaf is matrices in the order of its own axes, none of them fused."""
    axes = plan.local_axes(leaf)
    order = (*plan.batch(leaf), *axes.inputs, *axes.outputs)
    return not axes.splits and order == tuple(range(len(order)))


def views(plan: Plan, leaves: Sequence[jax.Array]) -> Views:
    """The leaves of a tree as matrices."""
    return [x if is_plain(plan, i) else to_matrices(x, plan.local_axes(i)) for i, x in enumerate(leaves)]


def _sides(plan: Plan, slot: Slot) -> tuple[int, int]:
    """The rows and columns that a leaf's own matrices have on this device."""
    axes, shape = plan.local_axes(slot.leaf), plan.local_shape(slot.leaf)
    rows, columns = (math.prod(shape[a] for a in group) for group in (axes.inputs, axes.outputs))
    return rows, axes.splits[slot.part] if axes.splits else columns


def _rows(pieces: Sequence[jax.Array], shape: Sequence[int]) -> jax.Array:
    """Arrays (..., *shape) as one array (B, *shape)."""
    flat = [x.reshape(-1, *shape[1:]) for x in pieces]
    return (jnp.concatenate(flat) if len(flat) > 1 else flat[0]).reshape(-1, *shape)


def _of_slots(stack: Stack, x: jax.Array) -> list[jax.Array]:
    """The tensors (count, ...) of every slot of a stack, those of a slot one below another."""
    ends = list(itertools.accumulate((slot.count for slot in stack.slots), initial=0))
    flat, d = (x, 1) if x.ndim == 1 else (x.reshape(-1, *x.shape[2:]), x.shape[1])
    return rows_between(flat, [end * d for end in ends])


def _orders(stack: Stack) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The lengths of a tensor's axes as its matrix has them; the order of the axes from there, and the way back."""
    forth = (0, *(p + 1 for p in stack.places))
    flat = tuple(stack.dims[stack.places.index(i)] for i in range(len(stack.dims)))
    return flat, forth, tuple(int(i) for i in np.argsort(forth))


def enter(plan: Plan, s: int, seen: Views) -> jax.Array:
    """The tensors of a stack that this device works on, (B, d_1, ..., d_k)."""
    stack = plan.stacks[s]
    x = to_owners(plan, s, in_rows(plan, s, seen))
    x = in_order_of_leaf(in_order_of_leaf(x, 1, stack.cut.row_order), 2, stack.cut.column_order)
    flat, forth, _ = _orders(stack)
    return x.reshape(-1, *flat).transpose(forth)


def in_rows(plan: Plan, s: int, seen: Views) -> jax.Array:
    """The shards that this device has of all matrices of a stack, (B, n, m)."""
    stack = plan.stacks[s]
    n, m = (
        k // math.prod(plan.sizes[a] for a in axes)
        for k, axes in ((stack.n, stack.cut.rows), (stack.m, stack.cut.columns))
    )

    def one(slot: Slot) -> jax.Array:
        x, (rows, columns) = seen[slot.leaf], _sides(plan, slot)
        x = x[slot.part] if isinstance(x, tuple) else x
        if slot.transposed:
            x, rows, columns = jnp.swapaxes(x.reshape(slot.count, rows, columns), 1, 2), columns, rows
        if (rows, columns) != (n, m):
            x = jnp.pad(x.reshape(slot.count, rows, columns), ((0, 0), (0, n - rows), (0, m - columns)))
        return x

    pieces = [one(slot) for slot in stack.slots]
    if missing := stack.padded - sum(slot.count for slot in stack.slots):
        pieces.append(jnp.zeros((missing, n, m), stack.dtype))
    return _rows(pieces, (n, m))


def to_owners(plan: Plan, s: int, x: jax.Array) -> jax.Array:
    """The complete matrices that this device works on, of its shards of all: rows and columns as they are joined."""
    stack = plan.stacks[s]
    for axis, over in ((2, stack.cut.columns), (1, stack.cut.rows)):
        if over and stack.single:
            x = jax.lax.all_gather(x, over, axis=axis, tiled=True)
        elif over:
            x = _exchange(x, over, 0, axis)
    if stack.cut.spread:
        x = own_rows(plan, stack.cut.spread, x)
    return x


def own_rows(plan: Plan, axes: tuple[str, ...], x: jax.Array) -> jax.Array:
    """The share of the rows of an array that this device has along some mesh axes."""
    share = x.shape[0] // math.prod(plan.sizes[a] for a in axes)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axes) * share, share)


def leave(plan: Plan, s: int, y: jax.Array, dtype: Any = None) -> dict[int, Any]:
    """What a stack has of its leaves: per leaf its matrices by the number of their weight, sharded as they came.

    Args:
      plan: of the leaves.
      s: the number of the stack.
      y: (B, n, m), as `flattened` makes it.
      dtype: in which they leave, where y was sent in another. Default None: that of y.
    """
    stack = plan.stacks[s]
    y = in_order_of_leaf(y, 2, stack.cut.column_order, back=True)
    y = in_order_of_leaf(y, 1, stack.cut.row_order, back=True)
    return to_leaves(plan, s, from_owners(plan, s, y), dtype)


def from_owners(plan: Plan, s: int, y: jax.Array) -> jax.Array:
    """The inverse of `to_owners`, but for stacks that devices share without sharding them, which `gather` joins."""
    stack = plan.stacks[s]
    for axis, over in ((1, stack.cut.rows), (2, stack.cut.columns)):
        if over and stack.single:
            length = y.shape[axis] // math.prod(plan.sizes[a] for a in over)
            y = jax.lax.dynamic_slice_in_dim(y, jax.lax.axis_index(over) * length, length, axis)
        elif over:
            y = _exchange(y, over, axis, 0)
    return y


def to_leaves(plan: Plan, s: int, y: jax.Array, dtype: Any = None) -> dict[int, Any]:
    """The inverse of `in_rows`: the shards of every leaf, by the number of their weight."""
    out: dict[int, Any] = {}
    stack = plan.stacks[s]
    for slot, z in zip(stack.slots, _of_slots(stack, y), strict=True):
        rows, columns = _sides(plan, slot)
        n, m = (columns, rows) if slot.transposed else (rows, columns)
        if (n, m) != y.shape[1:]:
            z = z.reshape(slot.count, *y.shape[1:])[:, :n, :m]
        if slot.transposed:
            z = jnp.swapaxes(z.reshape(slot.count, n, m), 1, 2)
        z = z if dtype is None else z.astype(dtype)
        shape = plan.local_shape(slot.leaf) if is_plain(plan, slot.leaf) else (slot.count, rows, columns)
        out.setdefault(slot.leaf, {})[slot.part] = z.reshape(shape)
    return out


def flattened(stack: Stack, y: jax.Array) -> jax.Array:
    """The tensors of a stack as matrices (B, n, m)."""
    _, _, back = _orders(stack)
    return y.reshape(-1, *stack.dims).transpose(back).reshape(-1, stack.n, stack.m)


def unchanged(stack: Stack, seen: Views) -> dict[int, Any]:
    """What a stack has of leaves as they are, in the form of `leave`."""
    out: dict[int, Any] = {}
    for slot in stack.slots:
        x = seen[slot.leaf]
        out.setdefault(slot.leaf, {})[slot.part] = x[slot.part] if isinstance(x, tuple) else x
    return out


def leaf_of(plan: Plan, leaf: int, parts: dict[int, jax.Array] | None, old: jax.Array) -> jax.Array:
    """A leaf of its weights; the old one where it has no entries."""
    if not parts:
        return old
    if is_plain(plan, leaf):
        return parts[0]
    return from_matrices([parts[j] for j in sorted(parts)], old.shape, plan.local_axes(leaf))


def joined(pieces: Sequence[jax.Array], shape: Sequence[int]) -> jax.Array:
    """What leaves keep of the tensors of a stack, each of this shape, as one array (B, ...)."""
    return _rows(pieces, shape)


def separated(plan: Plan, s: int, x: jax.Array) -> list[jax.Array]:
    """What is kept of the tensors of a stack, for every slot of it: (stack axes of its leaf, ...)."""
    stack, out = plan.stacks[s], []
    for slot, piece in zip(stack.slots, _of_slots(stack, x), strict=True):
        batch = tuple(plan.shapes[slot.leaf][a] for a in plan.batch(slot.leaf))
        out.append(piece.reshape(*batch, *x.shape[1:]))
    return out


def gather(plan: Plan, done: dict[int, jax.Array]) -> dict[int, jax.Array]:
    """The results of all devices that share replicated stacks, by the numbers of the stacks: one all-gather for all of
    one dtype."""
    joint: dict[Any, list[int]] = {}
    for s, y in done.items():
        joint.setdefault((plan.stacks[s].cut.spread, y.dtype), []).append(s)
    out = {}
    for (axes, _), members in joint.items():
        if len(members) == 1:
            out[members[0]] = jax.lax.all_gather(done[members[0]], axes, tiled=True)
            continue
        flat = jnp.concatenate([done[s].reshape(-1) for s in members])
        everyone = jax.lax.all_gather(flat, axes)
        ends = list(itertools.accumulate(done[s].size for s in members))[:-1]
        for s, y in zip(members, jnp.split(everyone, ends, axis=1), strict=True):
            out[s] = y.reshape(-1, *done[s].shape[1:])
    return out


def on_fused(kernel: Callable[[jax.Array], jax.Array], stack: Stack, transpose: bool) -> Callable[..., jax.Array]:
    """A function of matrices (B, n, m) for a stack of complete matrices in which several weights are fused."""

    def run(x: jax.Array) -> jax.Array:
        ends = list(itertools.accumulate(stack.splits))[:-1]
        parts = jnp.split(x, ends, axis=2)
        tall = [transpose and p.shape[1] > p.shape[2] for p in parts]
        parts = [jnp.swapaxes(p, 1, 2) if t else p for p, t in zip(parts, tall, strict=True)]
        out: list[Any] = [None] * len(parts)
        for shape in dict.fromkeys(p.shape for p in parts):
            same = [i for i, p in enumerate(parts) if p.shape == shape]
            done = kernel(jnp.concatenate([parts[i] for i in same]))
            for i, y in zip(same, jnp.split(done, len(same)), strict=True):
                out[i] = jnp.swapaxes(y, 1, 2) if tall[i] else y
        return jnp.concatenate(out, axis=2)

    return run


def _exchange(x: jax.Array, axes: tuple[str, ...], cut: int, join: int) -> jax.Array:
    """Shards one axis over the devices, and joins their shards of another."""
    # Without the barrier XLA's CPU compiler may give the pieces layouts of their own, and then refuses them.
    return jax.lax.all_to_all(jax.lax.optimization_barrier(x), axes, split_axis=cut, concat_axis=join, tiled=True)
