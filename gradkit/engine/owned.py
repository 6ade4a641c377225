"""State that belongs to matrices and lies with the device that works on them.

plan -> per stack (B, ...) cut along its owners        on N devices each holds 1 / N, and none of it ever travels
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gradkit.engine.core import wide_dtype
from gradkit.engine.matrices import MatrixSharding, Plan, Stack, check_matrix, entries, map_matrices, plan_matrices
from gradkit.leaves import Layout, axes_of, names


@partial(jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["owners", "rows"])
@dataclasses.dataclass(frozen=True)
class Owned:
    """State of the matrices of one stack, which lies with the devices that work on them.

    Attributes:
      arrays: a tree of arrays, along the leading axis of each the matrices of the stack, padding at the end. A matrix
        has one row, or as many as its blocks, one after another.
      owners: the mesh axes along which that axis is cut, the major one first; none on one device.
      rows: the name of each matrix of the stack, empty for padding: a checkpoint finds them again on another mesh.
        None inside `shard_map`, where a device does not know what the others have.
    """

    arrays: Any
    owners: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()


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


def owners_of(state: Any) -> list[tuple[str, ...] | None]:
    """Per leaf of a state, the mesh axes along which it lies with its owner; None where it does not."""

    def owned(node: Any) -> bool:
        return isinstance(node, Owned)

    nodes = jax.tree.leaves(state, is_leaf=owned)
    return [node.owners if owned(node) else None for node in nodes for _ in jax.tree.leaves(node)]


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


def plan_owned(
    tree: Any,
    *,
    method: str,
    layout: Layout | None,
    shard: MatrixSharding | None,
    turn: Callable[[int, int], bool],
    kinds: Sequence[Hashable] | None = None,
    divide: bool = False,
) -> Plan:
    """`plan_matrices` for state: the same for parameters and for updates, which come in a wider dtype.

    Args:
      tree: leaves that all have inputs and outputs.
      method: the public name, for messages.
      layout: what the axes of a leaf mean.
      shard: over which devices.
      turn: (rows, columns) -> whether a matrix is worked on transposed.
      kinds: per leaf, what the leaves of a stack must have in common besides. Default None: nothing.
      divide: as in `plan_matrices`. Default False.
    """
    leaves, structure = jax.tree.flatten(tree)
    for name, x in zip(names(tree), leaves, strict=True):
        check_matrix(method, name, x.shape, axes_of(layout, name, x.shape))

    def wide(x: Any) -> Any:
        if isinstance(x, Tracer):
            return x.astype(wide_dtype(x.dtype))
        return jax.ShapeDtypeStruct(x.shape, wide_dtype(x.dtype), sharding=getattr(x, "sharding", None))

    return plan_matrices(
        structure.unflatten([wide(x) for x in leaves]),
        method=method,
        layout=layout,
        shard=shard,
        transpose=turn,
        kinds=[None] * len(leaves) if kinds is None else kinds,
        divide=divide,
    )


def kept(plan: Plan, stack: Stack) -> tuple[int, tuple[str, ...]]:
    """How many matrices of a stack are kept, on all devices together (inside `shard_map`, on this one), and along which
    axes they are cut."""
    if plan.mesh is None:
        return stack.padded // math.prod(plan.sizes[a] for a in stack.owners if a not in stack.cut.batch), ()
    return stack.padded * math.prod(plan.sizes[a] for a in stack.cut.batch), stack.owners


def _marked(plan: Plan, marks: dict[str, int]) -> tuple[jax.Array, ...]:
    """Per stack a number for each of its matrices, by name, where it lies; -1 for padding."""
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


def placed(plan: Plan, stack: Stack, own: Any) -> Owned:
    """What is kept of a stack, with its owners."""
    _, owners = kept(plan, stack)
    if plan.mesh is not None:
        lies = NamedSharding(plan.mesh, PartitionSpec(owners or None))
        explicit = AxisType.Explicit in plan.mesh.axis_types
        put: Any = jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint
        concrete = isinstance(plan.mesh, Mesh) and not any(isinstance(x, Tracer) for x in jax.tree.leaves(own))
        own = jax.tree.map(lambda x: (jax.device_put if concrete else put)(x, lies), own)
    return Owned(own, owners, rows_of(plan, stack))


def _reshard(x: jax.Array, owners: tuple[str, ...]) -> jax.Array:
    return jax.sharding.reshard(x, PartitionSpec(owners or None))


def map_owned(
    method: str,
    kernel: Callable[..., Any] | Sequence[Callable[..., Any]],
    tree: Any,
    plan: Plan,
    owned: Sequence[Owned],
    shared: Any,
    more: Sequence[Any] = (),
) -> tuple[Any, tuple[Owned, ...]]:
    """`map_matrices` with state.

    Args:
      method: the public name, for messages.
      kernel: ((B, n, m), own, shared) -> ((B, n, m), own); or one for every stack. Followed by as much of `more`.
      tree: leaves that all have inputs and outputs.
      plan: of this tree.
      owned: what `init_fields` made of the plan of the parameters, all fields together.
      shared: numbers that every call is given, the same on all devices.
      more: further trees like `tree`, which enter with it.

    Raises:
      ValueError: the tree lies otherwise than the one that the state was made for.
    """
    have = [(len(o.rows) or jax.tree.leaves(o.arrays)[0].shape[0], o.owners) for o in owned]
    want = [kept(plan, stack) for stack in plan.stacks]
    # Of a matrix there may be several rows, and inside `shard_map` nothing else says how many matrices there are.
    named = all(o.rows for o in owned)
    if [o for _, o in have] != [o for _, o in want] or any(
        a != b if named else a % b for (a, _), (b, _) in zip(have, want, strict=True)
    ):
        raise ValueError(
            f"{method}: its state has stacks (matrices, mesh axes) {have}, and the updates make {want}: init must see "
            f"parameters that lie as the updates do, or both need one MatrixSharding(..., specs=)"
        )
    stacks: Any = [o.arrays for o in owned]
    if plan.mesh is not None and AxisType.Explicit in plan.mesh.axis_types:
        # What an init under jit has made without out_shardings may still be whole.
        stacks = [jax.tree.map(partial(_reshard, owners=o.owners), own) for own, o in zip(stacks, owned, strict=True)]
    # Python numbers stay what they are: 1 - b is taken before anything is rounded.
    numbers, structure = jax.tree.flatten(shared)
    traced = [x for x in numbers if isinstance(x, jax.Array)]

    def on(one: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: jax.Array, own: Any, arrays: Any, *rest: jax.Array) -> tuple[jax.Array, Any]:
            given = iter(arrays)
            known = [next(given) if isinstance(k, jax.Array) else k for k in numbers]
            return one(x, own, structure.unflatten(known), *rest)

        return run

    run = on(kernel) if callable(kernel) else [on(one) for one in kernel]
    tree, stacks = map_matrices(run, tree, plan, stacks, more, traced)
    here = jax.sharding.get_abstract_mesh()
    if plan.mesh is None and not here.empty and set(here.axis_types) == {AxisType.Auto}:
        # Left to itself the compiler may cut what came in whole, and the next step would be another program.
        stacks = jax.lax.with_sharding_constraint(stacks, PartitionSpec())
    return tree, tuple(dataclasses.replace(o, arrays=own) for own, o in zip(stacks, owned, strict=True))


def failures(counts: Any) -> dict[str, jax.Array]:
    """The metric of a state: how many refreshes failed, of all matrices; the sum of what it has counted."""
    counts = jax.tree.leaves(counts)
    return {"failed_refreshes": sum((jnp.sum(c, dtype=jnp.int32) for c in counts), jnp.zeros((), jnp.int32))}


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """The matrix product, in full precision on every device."""
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)
