"""The one path of every matrix method: leaves -> stacks of equal matrices -> one call per stack -> leaves.

    leaf --layout--> matrices (batch, inputs, outputs) --transpose--> (batch, n, m), n <= m
    matrices of one (n, m, dtype, placement) -> one stack (B, n, m)

On a mesh of which N devices share a stack, it is padded to a multiple of N and every device gets B / N whole matrices;
mesh axes along which there is nothing left to share out repeat the work:

    leaf replicated                       its own slice                    no exchange
    leaf cut along inputs or outputs      one all-to-all per stack         B n m / N words received
    leaf cut along a batch axis           what it holds                    no exchange

and the results go back the mirrored way: one all-gather for all replicated stacks together, one all-to-all per stack.
On one CPU a stack holds at most 24 leaves, which compiles several times faster than one long stack.
The plan is static: it follows from names, shapes, dtypes, the layout and the specs alone.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from gradkit import checks
from gradkit.engine.placement import Cut, cut_of, in_order_of_leaf, merged, needed, specs_of, spread_over
from gradkit.leaves import Axes, Layout, axes_of, from_matrices, names, to_matrices

# XLA's CPU compiler makes one function per place that a result is cut from a stack, and reuses it for other stacks.
LEAVES_PER_STACK = 24


@dataclasses.dataclass(frozen=True)
class MatrixSharding:
    """How matrix work is spread over a mesh: every matrix is worked on by one device.

    Work on a leaf is shared by the devices along `axis`, and along every mesh axis that the leaf itself is cut along.

    Attributes:
      mesh: the mesh. None: the update itself stands inside `jax.shard_map` (or `jax.vmap`) over `axis`, and leaves are
        what one device holds.
      axis: name of a mesh axis, or several.
      comm_dtype: dtype in which results travel, such as `jnp.bfloat16`; every device rounds alike, so replicas stay
        equal. Default None: their own.
      min_dim: a replicated matrix whose short side is below this is worked on by every device, as sending it would take
        longer. Default 96: where one product of 400 TFLOP/s equals sending over 300 GB/s; about 500 for 50 GB/s.
      specs: where leaves lie: a tree of `PartitionSpec`s or `NamedSharding`s with the names of the parameters, or one
        for all leaves. Needed under `jit` over Auto axes, where a trace knows no sharding; over Explicit axes, and
        outside `jit`, it is read off the leaves. Default None.

    Raises:
      ValueError: an axis that the mesh lacks, a negative `min_dim`.

    Example:
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> MatrixSharding(mesh, "data").min_dim
      96
    """

    mesh: Mesh | AbstractMesh | None
    axis: str | tuple[str, ...]
    comm_dtype: Any = None
    min_dim: int = 96
    specs: Any = None

    def __post_init__(self) -> None:
        checks.integer("min_dim", self.min_dim)
        checks.floating_dtype(comm_dtype=self.comm_dtype)
        for name in self.axes:
            checks.choice("axis", name, (name,) if self.mesh is None else self.mesh.axis_names)

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the axes."""
        return (self.axis,) if isinstance(self.axis, str) else tuple(self.axis)


class Slot(NamedTuple):
    """Where the matrices of one leaf (of one of its fused weights) stand in a stack: `count` of them, in order."""

    leaf: int
    part: int
    count: int
    turned: bool


class Stack(NamedTuple):
    """Matrices that are worked on in one call: on one device `padded` of shape (n, m), the last of them zeros.

    `cut` says which mesh axes cut their batch, rows and columns, and which devices share the rest; `splits` are the
    sizes of weights that are fused along a cut axis, and separated only where the matrices are whole.
    """

    n: int
    m: int
    dtype: Any
    cut: Cut
    splits: tuple[int, ...]
    slots: tuple[Slot, ...]
    padded: int

    @property
    def owners(self) -> tuple[str, ...]:
        """Mesh axes along which the whole stack, all devices together, is cut into matrices; the major one first."""
        return (*self.cut.batch, *self.cut.columns, *self.cut.rows, *self.cut.spread)


class Plan(NamedTuple):
    """The stacks of a tree; name, meaning, whole shape and spec of every leaf; the mesh to enter and the sizes of its
    axes; whether the kernel may be given transposes; the dtype in which results travel."""

    stacks: tuple[Stack, ...]
    names: tuple[str, ...]
    axes: tuple[Axes, ...]
    shapes: tuple[tuple[int, ...], ...]
    specs: tuple[PartitionSpec, ...]
    mesh: Mesh | AbstractMesh | None
    sizes: dict[str, int]
    transpose: bool
    comm_dtype: Any


def plan_matrices(
    tree: Any,
    *,
    method: str,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
    transpose: bool | Callable[[int, int], bool] = True,
    merge: bool = False,
    kinds: Sequence[Hashable] | None = None,
    divide: bool | None = None,
) -> Plan:
    """Decides which matrices are worked on together, and by whom.

    Args:
      tree: leaves that all have inputs and outputs; arrays, or `jax.ShapeDtypeStruct`s.
      method: the public name, for messages.
      layout: what the axes of a leaf mean.
      shard: over which devices. Default None: over those that leaves are cut along, where Explicit axes say so.
      transpose: whether the method commutes with transposition: then (n, m) and (m, n) are one stack. A function
        (rows, columns) -> bool says which matrices are turned, wherever they lie: for a method whose sides differ.
      merge: whether padding a matrix by zero rows and columns changes nothing: then stacks of different shapes are
        joined where that leaves fewer idle devices.
      kinds: per leaf, what the leaves of a stack must have in common besides. Then leaves may also lack inputs or
        outputs (they are one row, one column, one entry). Default None.
      divide: whether a long stack may be divided for the compiler's sake: not where what belongs to it is kept with it,
        which is the same on every kind of device. Default None: where there are no kinds.
    """
    known, leaves = names(tree), jax.tree.leaves(tree)
    mesh, specs = specs_of(method, known, leaves, shard)
    used = {a for spec in specs for entry in spec if entry for a in (entry if isinstance(entry, tuple) else (entry,))}
    wanted = () if shard is None else shard.axes
    known_sizes = None if mesh is None else dict(mesh.shape)
    sizes = known_sizes or {a: jax.lax.axis_size(a) for a in sorted({*used, *wanted})}
    inside = shard is not None and shard.mesh is None
    least = 0 if shard is None else shard.min_dim

    found: dict[Any, list[Slot]] = {}
    meanings, shapes, cuts = [], [], []
    for name, x, spec in zip(known, leaves, specs, strict=True):
        ways = [math.prod(sizes[a] for a in axes) for axes in entries(spec, len(x.shape))]
        shape = tuple(k * w if inside else k for k, w in zip(x.shape, ways, strict=True))
        local = tuple(k // w for k, w in zip(shape, ways, strict=True))
        axes = axes_of(layout, name, shape)
        if kinds is None:
            check_matrix(method, name, shape, axes)
        meanings.append(axes)
        shapes.append(shape)
        cut = cut_of(name, entries(spec, len(shape)), axes, shape, sizes)
        if inside and axes.splits and cut.columns:
            raise ValueError(f"{method}: inside shard_map the fused weights of {name!r} must be whole along outputs")
        cuts.append((cut, local))

    sides = [
        tuple(math.prod(s[a] for a in group) for group in (m.inputs, m.outputs))
        for m, s in zip(meanings, shapes, strict=True)
    ]
    by_columns = {rows for (rows, width), (cut, _) in zip(sides, cuts, strict=True) if rows == width and cut.columns}
    for i, (x, axes, (rows, width), (cut, local)) in enumerate(zip(leaves, meanings, sides, cuts, strict=True)):
        count = math.prod(k for a, k in enumerate(local) if a not in axes.inputs and a not in axes.outputs)
        if not count * rows * width:
            continue
        whole = axes.splits if cut.columns else ()
        for part, columns in enumerate([width] if whole or not axes.splits else axes.splits):
            # Square matrices cut along rows and along columns are one stack. Not where all are cut alike: rounding
            # grows under Newton-Schulz, and the transpose of a matrix rounds otherwise.
            square_turn = rows == columns and rows in by_columns and bool(cut.rows) and not cut.columns
            tall = transpose(rows, columns) if callable(transpose) else rows > columns or square_turn
            turned = bool(transpose) and not whole and tall
            own = cut.turned() if turned else cut
            if kinds is None:  # Without a state, the order of the entries makes no difference.
                own = own._replace(row_order=(), column_order=())
            n, m = (columns, rows) if turned else (rows, columns)
            own = own._replace(spread=spread_over(own, wanted, small=min(n, m) < least, sizes=sizes))
            key = (n, m, jnp.dtype(x.dtype), own, whole, None if kinds is None else kinds[i])
            found.setdefault(key, []).append(Slot(i, part, count, turned))

    groups = merged(found, sizes) if merge else found
    divide = kinds is None if divide is None else divide
    here = mesh is None and not inside and divide and jax.default_backend() == "cpu"
    stacks = []
    for (n, m, dtype, cut, splits, _), slots in groups.items():
        cut = needed(cut, sum(slot.count for slot in slots), sizes)
        shared, most = _shared(cut, sizes), LEAVES_PER_STACK if here else len(slots)
        for some in (slots[i : i + most] for i in range(0, len(slots), most)):
            padded = -(-sum(slot.count for slot in some) // shared) * shared
            stacks.append(Stack(n, m, dtype, cut, splits, tuple(some), padded))
    comm_dtype = None if shard is None else shard.comm_dtype
    of_leaves = (tuple(stacks), tuple(known), tuple(meanings), tuple(shapes), tuple(specs))
    return Plan(*of_leaves, mesh, sizes, bool(transpose), comm_dtype)


def entries(spec: Any, rank: int) -> list[tuple[str, ...]]:
    """The mesh axes of every axis of a leaf."""
    found = [*spec, *[None] * (rank - len(spec))]
    return [() if e is None else e if isinstance(e, tuple) else (e,) for e in found]


def check_matrix(method: str, name: str, shape: tuple[int, ...], axes: Axes) -> None:
    """Raises where a leaf is no matrix."""
    if not axes.inputs or not axes.outputs:
        raise ValueError(
            f"{method}: the leaf {name!r} of shape {shape} is no matrix (role {axes.role!r}); give such leaves to "
            f"another method with `groups`, or say with `layout` which of its axes are inputs and outputs"
        )


def map_matrices(
    kernel: Callable[..., Any] | Sequence[Callable[..., Any]],
    tree: Any,
    plan: Plan,
    owned: Sequence[Any] | None = None,
    more: Sequence[Any] = (),
    shared: Any = None,
) -> Any:
    """Applies a function of a batch of matrices to all matrices of a tree, once per stack.

    Args:
      kernel: (B, n, m) -> (B, n, m). It sees whole matrices, in an order of their own, zeros at the end; in
        a plan without kinds, where a side is flattened from several axes of which an inner one is sharded, its entries
        may come in another order, the same at every step.
      tree: leaves that all have inputs and outputs.
      plan: what `plan_matrices` says of them.
      owned: what belongs to the matrices and never travels: per stack of the plan a tree of arrays with the leading
        axis `padded` (times the devices that cut its batch), cut along `owners`. The kernel is then
        (stack, own, shared, *stacks of `more`) -> (stack, own), `shared` only where it is given. Not for stacks with
        `splits`.
      more: with `owned`, further trees like `tree`, which enter with it and do not leave.
      shared: with `owned`, a tree of arrays that all kernels get whole. What is traced over Explicit axes must come
        this way: a kernel cannot close over it. Default None.

    Returns:
      A tree like `tree`; with `owned` also what the kernel made of it.
    """
    leaves, structure = jax.tree.flatten(tree)
    others = tuple(tuple(jax.tree.leaves(t)) for t in more)
    kernels = [kernel] * len(plan.stacks) if callable(kernel) else kernel
    stateless = owned is None
    owned = [None] * len(plan.stacks) if owned is None else list(owned)

    def view(leaves: tuple[jax.Array, ...]) -> list[tuple[jax.Array, ...]]:
        return [to_matrices(x, _local_axes(plan, i)) for i, x in enumerate(leaves)]

    def local(leaves: tuple[jax.Array, ...], owned: list[Any], others: Any, shared: Any) -> tuple[Any, list[Any]]:
        views, beside = view(leaves), [view(rest) for rest in others]
        done, kept = [], []
        for stack, kernel, own in zip(plan.stacks, kernels, owned, strict=True):
            x = _enter(stack, views, plan.sizes)
            rest = [*([] if shared is None else [shared]), *(_enter(stack, v, plan.sizes) for v in beside)]
            y, own = (_apply(kernel, x, stack, plan.transpose), None) if stateless else kernel(x, own, *rest)
            narrow = plan.comm_dtype is not None and _shared(stack.cut, plan.sizes) > 1
            done.append(y.astype(plan.comm_dtype) if narrow else y)
            kept.append(own)
        done = _gather(plan, done)
        parts: dict[tuple[int, int], jax.Array] = {}
        for stack, y in zip(plan.stacks, done, strict=True):
            parts |= _leave(stack, y, views)
        out = []
        for i, x in enumerate(leaves):
            own_parts = [parts[i, j] for j in range(len(views[i])) if (i, j) in parts]
            out.append(from_matrices(own_parts, x.shape, _local_axes(plan, i)) if own_parts else x)
        return tuple(out), kept

    if plan.mesh is None:
        out, kept = local(tuple(leaves), owned, others, shared)
    else:
        places = [
            jax.tree.map(lambda _, s=s: PartitionSpec(s.owners), o) for s, o in zip(plan.stacks, owned, strict=True)
        ]
        specs = (plan.specs, places)
        come = (*specs, (plan.specs,) * len(others), PartitionSpec())
        # Results of an all-gather are the same everywhere, which the type checker of shard_map cannot know.
        out, kept = jax.shard_map(local, mesh=plan.mesh, in_specs=come, out_specs=specs, check_vma=False)(
            tuple(leaves), owned, others, shared
        )
    tree = structure.unflatten(out)
    return tree if stateless else (tree, kept)


def _local_axes(plan: Plan, i: int) -> Axes:
    """The meaning of a leaf's axes; weights fused along a cut axis stay together for now."""
    axes = plan.axes[i]
    cut = any(entry for a, entry in enumerate(entries(plan.specs[i], len(plan.shapes[i]))) if a in axes.outputs)
    return axes._replace(splits=()) if cut else axes


def _shared(cut: Cut, sizes: dict[str, int]) -> int:
    """How many devices share a stack."""
    return math.prod(sizes[a] for a in (*cut.columns, *cut.rows, *cut.spread))


def _exchange(x: jax.Array, axes: tuple[str, ...], cut: int, join: int) -> jax.Array:
    """Cuts one axis over the devices, and joins what they held of another."""
    # Without the barrier XLA's CPU compiler may give the pieces layouts of their own, and then refuses them.
    return jax.lax.all_to_all(jax.lax.optimization_barrier(x), axes, split_axis=cut, concat_axis=join, tiled=True)


def _enter(stack: Stack, views: list[tuple[jax.Array, ...]], sizes: dict[str, int]) -> jax.Array:
    """The matrices of a stack that this device works on, whole."""
    n, m = (
        k // math.prod(sizes[a] for a in axes) for k, axes in ((stack.n, stack.cut.rows), (stack.m, stack.cut.columns))
    )
    pieces = []
    for slot in stack.slots:
        x = views[slot.leaf][slot.part]
        x = jnp.swapaxes(x, 1, 2) if slot.turned else x
        if x.shape[1:] != (n, m):
            x = jnp.pad(x, ((0, 0), (0, n - x.shape[1]), (0, m - x.shape[2])))
        pieces.append(x)
    if missing := stack.padded - sum(slot.count for slot in stack.slots):
        pieces.append(jnp.zeros((missing, n, m), stack.dtype))
    x = jnp.concatenate(pieces) if len(pieces) > 1 else pieces[0]
    if stack.cut.columns:
        x = _exchange(x, stack.cut.columns, 0, 2)
    if stack.cut.rows:
        x = _exchange(x, stack.cut.rows, 0, 1)
    if stack.cut.spread:
        share = x.shape[0] // math.prod(sizes[a] for a in stack.cut.spread)
        x = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(stack.cut.spread) * share, share)
    return in_order_of_leaf(in_order_of_leaf(x, 1, stack.cut.row_order), 2, stack.cut.column_order)


def _apply(kernel: Callable[..., Any], x: jax.Array, stack: Stack, transpose: bool) -> jax.Array:
    """The kernel on every weight; on whole matrices first, where several are fused."""
    if not stack.splits:
        return kernel(x)
    ends = list(itertools.accumulate(stack.splits))[:-1]
    parts = jnp.split(x, ends, axis=2)
    turn = [transpose and p.shape[1] > p.shape[2] for p in parts]
    parts = [jnp.swapaxes(p, 1, 2) if t else p for p, t in zip(parts, turn, strict=True)]
    out: list[Any] = [None] * len(parts)
    for shape in dict.fromkeys(p.shape for p in parts):
        same = [i for i, p in enumerate(parts) if p.shape == shape]
        done = kernel(jnp.concatenate([parts[i] for i in same]))
        for i, y in zip(same, jnp.split(done, len(same)), strict=True):
            out[i] = jnp.swapaxes(y, 1, 2) if turn[i] else y
    return jnp.concatenate(out, axis=2)


def _gather(plan: Plan, done: list[jax.Array]) -> list[jax.Array]:
    """The results of all devices that share replicated stacks: one all-gather for all stacks of a dtype."""
    joint: dict[Any, list[int]] = {}
    for i, (stack, y) in enumerate(zip(plan.stacks, done, strict=True)):
        if stack.cut.spread:
            joint.setdefault((stack.cut.spread, y.dtype), []).append(i)
    for (axes, _), members in joint.items():
        if len(members) == 1:
            done[members[0]] = jax.lax.all_gather(done[members[0]], axes, tiled=True)
            continue
        flat = jnp.concatenate([done[i].reshape(-1) for i in members])
        everyone = jax.lax.all_gather(flat, axes)
        ends = list(itertools.accumulate(done[i].size for i in members))[:-1]
        for i, y in zip(members, jnp.split(everyone, ends, axis=1), strict=True):
            done[i] = y.reshape(-1, *done[i].shape[1:])
    return done


def _leave(stack: Stack, y: jax.Array, views: list[tuple[jax.Array, ...]]) -> dict[tuple[int, int], jax.Array]:
    """Every slot's part of the results, cut as it came."""
    y = in_order_of_leaf(y, 2, stack.cut.column_order, back=True)
    y = in_order_of_leaf(y, 1, stack.cut.row_order, back=True)
    if stack.cut.rows:
        y = _exchange(y, stack.cut.rows, 1, 0)
    if stack.cut.columns:
        y = _exchange(y, stack.cut.columns, 2, 0)
    start, out = 0, {}
    for slot in stack.slots:
        shape = views[slot.leaf][slot.part].shape[1:]
        n, m = shape[::-1] if slot.turned else shape
        z = y[start : start + slot.count, :n, :m].astype(stack.dtype)
        out[slot.leaf, slot.part] = jnp.swapaxes(z, 1, 2) if slot.turned else z
        start += slot.count
    return out
