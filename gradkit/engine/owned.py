"""State that belongs to matrices and is kept by the device that works on them.

plan -> per stack (B, ...) cut along its owners        on N devices each holds 1 / N, and none of it ever travels
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gradkit.engine.placement import entries
from gradkit.engine.single import spec_of
from gradkit.engine.stacks import Plan, Stack


@partial(
    jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["owners", "rows", "addresses", "single"]
)
@dataclasses.dataclass(frozen=True)
class Owned:
    """State of the matrices of one stack, which is kept by the devices that work on them.

    Attributes:
      arrays: a tree of arrays, along the leading axis of each the matrices of the stack, padding at the end. A matrix
        has one row, or as many as its blocks, one after another.
      owners: the mesh axes along which that axis is cut, the major one first; none on one device.
      rows: the name of each matrix of the stack, empty for padding: a checkpoint finds them again on another mesh.
        None inside `shard_map`, where a device does not know what the others have.
      addresses: where the same state stands when it is kept by parameter, as `addresses_of` returns it.
      single: of a stack with a single matrix, the mesh axes along which the other axes are sharded, as `spec_of` says.
    """

    arrays: Any
    owners: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    addresses: tuple[Any, ...] = ()
    single: tuple[str, ...] = ()


def _to_state_dict(state: Owned) -> dict[str, Any]:
    """What `flax.serialization` writes: the arrays, and the names of their rows."""
    return {"arrays": serialization.to_state_dict(state.arrays), "rows": "\n".join(state.rows)}


def _from_state_dict(state: Owned, saved: dict[str, Any]) -> Owned:
    """The arrays that were written, for a state whose rows are the same matrices in the same order."""
    if saved["rows"] != "\n".join(state.rows):
        raise ValueError(
            f"the state was written with the matrices {saved['rows'].split()}, in this order, and is read for "
            f"{list(state.rows)}: flax.serialization moves no rows. Read it on the mesh on which it was written, or "
            "use the checkpoints of gk.training, which find every matrix by its name"
        )
    return dataclasses.replace(state, arrays=serialization.from_state_dict(state.arrays, saved["arrays"]))


serialization.register_serialization_state(Owned, _to_state_dict, _from_state_dict)


def specs_of_stacks(state: Any, sizes: Mapping[str, int]) -> list[PartitionSpec | None]:
    """Per leaf of a state the spec of what is kept in a stack, on mesh axes of these sizes; None where it is not."""

    def owned(node: Any) -> bool:
        return isinstance(node, Owned)

    def one(node: Any, x: Any) -> PartitionSpec | None:
        return spec_of(x.shape, node.owners, node.single, sizes) if owned(node) else None

    return [one(node, x) for node in jax.tree.leaves(state, is_leaf=owned) for x in jax.tree.leaves(node)]


def map_unowned(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` over all but what is with the owners of matrices, which stays as it is."""

    def one(node: Any, *others: Any) -> Any:
        return node if isinstance(node, Owned) else function(node, *others)

    return jax.tree.map(one, tree, *rest, is_leaf=lambda node: isinstance(node, Owned))


def rows_of(plan: Plan, stack: Stack) -> tuple[str, ...]:
    """`row_names`, but none inside `shard_map`, where a device has some of the rows alone."""
    return () if plan.mesh is None and plan.sizes else row_names(plan, stack)


def row_names(plan: Plan, stack: Stack) -> tuple[str, ...]:
    """The name of each matrix of a stack, all devices together: that of its leaf, the weight in it, its number."""
    out: list[str] = []
    for block in np.ndindex(*(plan.sizes[a] for a in stack.cut.batch)):
        at = dict(zip(stack.cut.batch, block, strict=True))
        here: list[str] = []
        for slot in stack.slots:
            shape, axes = plan.shapes[slot.leaf], plan.axes[slot.leaf]
            cut = entries(plan.specs[slot.leaf], len(shape))
            batch = [a for a in range(len(shape)) if a not in axes.inputs and a not in axes.outputs]
            numbers = np.arange(math.prod(shape[a] for a in batch)).reshape([shape[a] for a in batch])
            for i, a in enumerate(batch):
                place = 0
                for name in cut[a]:
                    place = place * plan.sizes[name] + at[name]
                own = shape[a] // math.prod(plan.sizes[name] for name in cut[a])
                numbers = numbers.take(range(place * own, (place + 1) * own), axis=i)
            here += [f"{plan.names[slot.leaf]}[{slot.part},{k}]" for k in numbers.ravel().tolist()]
        out += here + [""] * (stack.padded - len(here))
    return tuple(out)


def kept(plan: Plan, stack: Stack) -> tuple[int, tuple[str, ...]]:
    """How many matrices of a stack are kept, on all devices together (inside `shard_map`, on this one), and along which
    axes they are cut."""
    if plan.mesh is None:
        return stack.padded // math.prod(plan.sizes[a] for a in stack.owners if a not in stack.cut.batch), ()
    return stack.padded * math.prod(plan.sizes[a] for a in stack.cut.batch), stack.owners


def _marked(plan: Plan, marks: dict[str, int]) -> tuple[jax.Array, ...]:
    """Per stack a number for each of its matrices, by name, in its place; -1 for padding."""
    out = []
    for stack in plan.stacks:
        rows = jnp.asarray(np.array([marks.get(name, -1) for name in row_names(plan, stack)], np.int32))
        if plan.mesh is None and stack.owners:  # inside `shard_map` a device has its own
            here, _ = kept(plan, stack)
            rows = jax.lax.dynamic_slice_in_dim(rows, jax.lax.axis_index(stack.owners) * here, here)
        out.append(rows)
    return tuple(out)


def _matrices(plan: Plan) -> list[tuple[str, tuple[int, ...]]]:
    """The name of every matrix in the order of the tree, and a size that does not depend on the mesh."""
    out = []
    for leaf, part in sorted({(slot.leaf, slot.part) for stack in plan.stacks for slot in stack.slots}):
        shape, axes = plan.shapes[leaf], plan.axes[leaf]
        own = [shape[a] for a in (*axes.inputs, *axes.outputs)]
        count = math.prod(shape) // math.prod(own)
        out += [(f"{plan.names[leaf]}[{part},{k}]", (part, *sorted(own))) for k in range(count)]
    return out


def numbers(plan: Plan) -> tuple[jax.Array, ...]:
    """Per stack the place in the tree of each of its matrices, the same on every mesh; -1 for padding."""
    return _marked(plan, {name: i for i, (name, _) in enumerate(_matrices(plan))})


def phases(plan: Plan, interval: int | None) -> tuple[jax.Array | None, ...]:
    """Per stack the phase of each of its matrices, as `refreshes.due` reads it, the same on every mesh; -1 for padding.

    Matrices of one size are numbered one after another, so that they share out the steps among them evenly. None where
    there is no interval.
    """
    if interval is None:
        return (None,) * len(plan.stacks)
    sizes: dict[Any, list[str]] = {}
    for name, size in _matrices(plan):
        sizes.setdefault(size, []).append(name)
    return _marked(plan, {name: i % interval for i, name in enumerate(itertools.chain(*sizes.values()))})


def placed(plan: Plan, stack: Stack, own: Any, addresses: tuple[Any, ...] = ()) -> Owned:
    """What is kept of a stack, with its owners."""
    _, owners = kept(plan, stack)
    if plan.mesh is not None:
        explicit = AxisType.Explicit in plan.mesh.axis_types
        put: Any = jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint
        concrete = isinstance(plan.mesh, Mesh) and not any(isinstance(x, Tracer) for x in jax.tree.leaves(own))
        mesh, move = plan.mesh, jax.device_put if concrete else put

        def one(x: Any) -> Any:
            return move(x, NamedSharding(mesh, spec_of(x.shape, owners, stack.single, plan.sizes)))

        own = jax.tree.map(one, own)
    return Owned(own, owners, rows_of(plan, stack), addresses, stack.single)
