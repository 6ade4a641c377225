"""Work on some rows of every matrix, those of largest l1 norm: chosen before the matrices are sent to their owners.

    leaves --in_rows--> (B, n, m) --chosen--> (B, k, m) --to owners--> kernel --from owners--> (B, k, m) --> (B, n, m)

With R the devices along which rows are sharded:

    rows on one device                      k rows of a matrix are sent; the norms are summed where columns are sharded
    rows sharded, chosen per shard          k rows, ceil(fraction n / R) of every shard; the choice depends on the mesh
    rows sharded, chosen of all             all rows are sent, and the k chosen ones taken by the owner; the norms are
                                            gathered, so that all devices choose alike
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit.engine.exchange import from_owners, gather, in_rows, leaf_of, own_rows, to_leaves, to_owners, views
from gradkit.engine.fields import PerParameter, WithOwners
from gradkit.engine.mapping import on_devices
from gradkit.engine.parts import merged
from gradkit.engine.placement import as_it_lay, everywhere, in_order_of_leaf
from gradkit.engine.planning import fused_along_outputs
from gradkit.engine.stacks import Plan

# Which matrices are transposed, so that slices are rows: of a square one they are outputs.
ROWS = {"short": lambda rows, columns: rows >= columns, "output": lambda rows, columns: True}
SELECTIONS = ("global", "local")


class Chosen(NamedTuple):
    """Rows of the matrices of a stack.

    Attributes:
      here: (B, k), places among the rows that this device has, of all matrices.
      mask: (B, rows that this device has), whether a row is chosen.
      at_owner: (b, k), places among all rows, in the order of the leaf, of the matrices that this device works on.
      sent: whether the chosen rows alone are sent.
    """

    here: jax.Array
    mask: jax.Array
    at_owner: jax.Array
    sent: bool


def length_of(fraction: float, length: int) -> int:
    """How many of so many slices are chosen.

    >>> length_of(0.25, 6), length_of(0.01, 6), length_of(1.0, 6)
    (2, 1, 6)
    """
    return max(1, math.ceil(fraction * length))


def taken(x: jax.Array, places: jax.Array) -> jax.Array:
    """Some rows of every matrix: (B, n, m), (B, k) -> (B, k, m)."""
    return jnp.take_along_axis(x, places[:, :, None], axis=1)


def spread_out(y: jax.Array, places: jax.Array, length: int) -> jax.Array:
    """The inverse of `taken`, zeros elsewhere: (B, k, m), (B, k) -> (B, length, m).

    >>> spread_out(jnp.ones((1, 1, 2)), jnp.array([[2]]), 3).tolist()
    [[[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]]
    """
    batch = jnp.arange(y.shape[0], dtype=places.dtype)[:, None]
    return jnp.zeros((y.shape[0], length, y.shape[2]), y.dtype).at[batch, places].set(y)


def chosen(plan: Plan, s: int, x: jax.Array, fraction: float, selection: str) -> Chosen:
    """The rows of largest l1 norm of every matrix of a stack; of equal ones the first."""
    stack = plan.stacks[s]
    cut, rows = stack.cut, x.shape[1]
    norms = jnp.sum(jnp.abs(x), axis=2)
    if cut.columns:
        norms = jax.lax.psum(norms, cut.columns)
    start = jax.lax.axis_index(cut.rows) * rows if cut.rows else jnp.zeros((), jnp.int32)
    of_all = bool(cut.rows) and selection == "global"
    if of_all:
        norms = in_order_of_leaf(jax.lax.all_gather(norms, cut.rows, axis=1, tiled=True), 1, cut.row_order)
    places = jax.lax.top_k(norms, length_of(fraction, norms.shape[1]))[1]
    batch = jnp.arange(x.shape[0], dtype=places.dtype)[:, None]
    mask = jnp.zeros(norms.shape, bool).at[batch, places].set(True)
    everyone = places
    if of_all:
        joined = in_order_of_leaf(mask, 1, cut.row_order, back=True)
        mask = jax.lax.dynamic_slice_in_dim(joined, start, rows, axis=1)
    elif cut.rows:
        # The place in the leaf of every row, in the order in which shards are joined.
        order = jnp.arange(stack.n, dtype=places.dtype)[None]
        order = in_order_of_leaf(order, 1, cut.row_order, back=True)[0]
        everyone = jax.lax.all_gather(order[start + places], cut.rows, axis=1, tiled=True)
    for over in (cut.columns, cut.rows):
        if over and not stack.single:
            everyone = own_rows(plan, over, everyone)
    if cut.spread:
        everyone = own_rows(plan, cut.spread, everyone)
    return Chosen(places, mask, everyone, not of_all)


def returned(plan: Plan, s: int, y: jax.Array, pick: Chosen) -> jax.Array:
    """What owners have made of chosen rows, in the rows that this device has; zeros elsewhere."""
    stack = plan.stacks[s]
    if not pick.sent:
        places = pick.at_owner
        if stack.cut.spread:
            places = jax.lax.all_gather(places, stack.cut.spread, tiled=True)
        y = in_order_of_leaf(spread_out(y, places, stack.n), 1, stack.cut.row_order, back=True)
    y = from_owners(plan, s, y)
    return spread_out(y, pick.here, pick.mask.shape[1]) if pick.sent else y


def map_slices(
    plan: Plan,
    kernel: Callable[..., Any] | None,
    tree: Any,
    fields: Mapping[str, Any] | None = None,
    numbers: Mapping[str, Any] | None = None,
    *,
    fraction: float,
    selection: str,
) -> tuple[Any, Any, dict[str, Any]]:
    """Applies a function to the rows of largest l1 norm of every matrix, once per stack.

    Args:
      plan: of this tree; its matrices are transposed by `ROWS`.
      kernel: (b, k, m) chosen rows, own, numbers, (b, k) their places -> the same shape, own. With selection="local"
        k is the sum over the shards. None: the rows as they are, of which none is sent.
      tree: the leaves.
      fields: what `init_fields` made, or this function. Default None: nothing is kept.
      numbers: what the kernel reads besides. Default None: nothing.
      fraction: the share of the rows that is chosen, in (0, 1].
      selection: "global" or "local".

    Returns:
      A tree like `tree`, zero where nothing was chosen; a tree of booleans, where it was; and the fields.

    Raises:
      ValueError: fused weights that are sharded along their outputs.
    """
    numbers, fields = dict(numbers or {}), dict(fields or {})
    like, structure = jax.tree.flatten(tree)
    kept = PerParameter(plan, structure, fields) if plan.alone else WithOwners(plan, fields)
    if plan.alone and fields:
        tree = everywhere(tree)
    for stack in plan.stacks:
        if stack.splits:
            raise fused_along_outputs(plan.method, plan.names[stack.slots[0].leaf])

    def local(leaves: Any, others: Any, held: Any, numbers: Any) -> tuple[Any, list[dict[str, Any]]]:
        del others
        seen, picked, done, new = views(plan, leaves), [], {}, []
        for s, stack in enumerate(plan.stacks):
            x = in_rows(plan, s, seen)
            pick = chosen(plan, s, x, fraction, selection)
            picked.append(pick)
            if kernel is None:
                done[s] = jnp.where(pick.mask[:, :, None], x, jnp.zeros((), x.dtype))
                new.append(kept.apart(s, None))
                continue
            x = to_owners(plan, s, taken(x, pick.here) if pick.sent else x)
            if not pick.sent:
                x = taken(in_order_of_leaf(x, 1, stack.cut.row_order), pick.at_owner)
            y, own = kernel(x, kept.own(s, held[s][0]), numbers, pick.at_owner)
            if plan.alone and fields:
                y, own = everywhere((y, own))
            if plan.comm_dtype is not None and plan.shared(stack) > 1:
                y = y.astype(plan.comm_dtype)
            done[s] = y
            new.append(kept.apart(s, own))
        if kernel is not None:
            done |= gather(plan, {s: y for s, y in done.items() if plan.stacks[s].cut.spread})
            done = {s: returned(plan, s, y, picked[s]) for s, y in done.items()}
        parts, masks = [], []
        for s, y in done.items():
            stack, pick = plan.stacks[s], picked[s]
            parts.append(to_leaves(plan, s, y, stack.dtype))
            masks.append(to_leaves(plan, s, jnp.broadcast_to(pick.mask[:, :, None], y.shape)))
        both = []
        for own in (merged(*parts), merged(*masks)):
            both += [leaf_of(plan, i, own.get(i), x) for i, x in enumerate(leaves)]
        return tuple(both), new

    held = [(arrays, None) for arrays in kept.arrays]
    out, new = on_devices(plan, local, tuple(jax.tree.leaves(tree)), (), held, numbers, outputs=2)
    if plan.alone:
        out = [as_it_lay(x, y) for x, y in zip(out, like * 2, strict=True)]
    half = len(like)
    chosen_rows = [x.astype(bool) for x in out[half:]]
    return structure.unflatten(out[:half]), structure.unflatten(chosen_rows), kept.after(new)
