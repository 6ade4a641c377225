"""The planner of every method that works on matrices or tensors: leaves -> stacks, and the devices that share them.

A view says how the tensors of one leaf are seen:

    as_matrices   the inputs and the outputs of the layout are rows and columns; a fused weight is a matrix of its own
    as_rows       the same, and a leaf without inputs is a matrix of one row
    as_tensors    every axis that is no stack axis is an axis of the tensor; flattened about a sharded one

On a mesh of which N devices share a stack, it is padded to a multiple of N and every device gets B / N complete
matrices; mesh axes along which there is nothing left to share out repeat the work. On one CPU a stack holds at most 24
leaves, which compiles several times faster than one long stack.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit.engine.backend import one_device
from gradkit.engine.core import wide_dtype
from gradkit.engine.placement import Cut, cut_of, entries, merged, needed, specs_of, spread_over
from gradkit.engine.shards import MatrixSharding
from gradkit.engine.stacks import Plan, Slot, Stack
from gradkit.leaves import Axes, Layout, axes_of, names, tensor_axes
from gradkit.leaves.derived import unboxed

# XLA's CPU compiler makes one function per place that a result is sliced from a stack, and reuses it for other stacks.
# On one device it is told the places (`rows_between`), and only large trees are worked on in parts, so that these are.
LEAVES_PER_STACK = 24
SMALL = 1 << 20
# An axis of a tensor that has the length of the columns of its stack: of fused weights they differ.
COLUMNS = None


class View(NamedTuple):
    """How the tensors of one leaf are seen.

    Attributes:
      axes: which axes of the leaf are the rows, the columns and the batch of its matrices.
      sources: the axes of the leaf that each axis of a tensor is made of.
      dims: the lengths of the axes of a tensor. None: it is a matrix of its stack.
      places: the places of these axes in the flattened order of the matrices.
    """

    axes: Axes
    sources: tuple[tuple[int, ...], ...]
    dims: tuple[int | None, ...] | None = None
    places: tuple[int, ...] = (0, 1)


def check_matrix(method: str, name: str, shape: tuple[int, ...], axes: Axes) -> None:
    """Raises where a leaf is no matrix."""
    if not axes.inputs or not axes.outputs:
        raise ValueError(
            f"{method}: the leaf {name!r} of shape {shape} is no matrix (role {axes.role!r}); give such leaves to "
            f"another method with `groups`, or say with `layout` which of its axes are inputs and outputs"
        )


def as_matrices(method: str, name: str, shape: tuple[int, ...], axes: Axes, over: list[tuple[str, ...]]) -> View:
    """A leaf as matrices of its inputs and outputs."""
    del over
    check_matrix(method, name, shape, axes)
    return View(axes, (axes.inputs, axes.outputs))


def as_rows(method: str, name: str, shape: tuple[int, ...], axes: Axes, over: list[tuple[str, ...]]) -> View:
    """A leaf as matrices of its inputs and outputs; one without inputs is one row, one without outputs one column."""
    del method, name, shape, over
    return View(axes, (axes.inputs, axes.outputs))


def as_tensors(method: str, name: str, shape: tuple[int, ...], axes: Axes, over: list[tuple[str, ...]]) -> View:
    """A leaf as tensors of any order, such that a sharded axis is the outer one of its side of the matrices.

    A scalar is a vector of one entry. Weights fused by `splits` are tensors of their own: the inputs, and an axis of
    the outputs of one weight.
    """
    if axes.splits:
        if any(over[a] for a in axes.outputs):
            raise fused_along_outputs(method, name)
        own = axes.inputs
        sharded = [a for a in own if over[a]]
        if len(sharded) > 1:
            raise ValueError(
                f"{method}: of the inputs of the fused weights {name!r} one may be sharded, got {sharded}; shard fewer "
                f"of them, or give their layout no `splits`"
            )
        rows = (*sharded, *(a for a in own if a not in sharded))
        dims = (*(shape[a] for a in own), COLUMNS)
        places = (*(rows.index(a) for a in own), len(own))
        return View(axes._replace(inputs=rows), (*((a,) for a in own), axes.outputs), dims, places)
    own = tensor_axes(axes, shape)
    sharded = [a for a in own if over[a]]
    if len(sharded) > 2:
        raise ValueError(
            f"{method}: of the axes of one tensor two may be sharded over the mesh, of {name!r} {sharded} are; shard "
            f"fewer of them"
        )
    column = sharded[-1] if len(sharded) == 2 else (own[-1] if own else None)
    row = [a for a in sharded if a != column]
    rows = (*row, *(a for a in own if a != column and a not in row))
    columns = () if column is None else (column,)
    flat = rows + columns
    view = axes._replace(inputs=rows, outputs=columns, splits=())
    if not own:
        return View(view, ((),), (1,), (0,))
    return View(view, tuple((a,) for a in own), tuple(shape[a] for a in own), tuple(flat.index(a) for a in own))


def plan_stacks(
    tree: Any,
    make: Callable[..., Any] | None = None,
    *,
    method: str,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
    view: Callable[..., View] = as_matrices,
    transpose: bool | Callable[[int, int], bool] = False,
    merge: bool = False,
    kinds: Sequence[Hashable] | None = None,
) -> Plan:
    """Decides which tensors are worked on together, by whom, and what is kept of them.

    Args:
      tree: leaves: arrays, `jax.ShapeDtypeStruct`s, or boxes of them. Parameters and their updates have one plan,
        although updates come in a wider dtype.
      make: what is kept of a stack, as in `Plan`. Default None: nothing.
      method: the public name, for messages.
      layout: what the axes of a leaf mean.
      shard: over which devices. Default None: over those that leaves are sharded along, where Explicit axes say so.
      view: how the tensors of a leaf are seen: `as_matrices` or `as_tensors`.
      transpose: whether the method commutes with transposition: then (n, m) and (m, n) are one stack. A function
        (rows, columns) -> bool says which matrices are transposed, whatever their sharding: for a method whose sides
        differ.
      merge: whether padding a matrix by zero rows and columns changes nothing: then stacks of different shapes are
        joined where that leaves fewer idle devices. Not where something is kept.
      kinds: per leaf, what the leaves of a stack must have in common besides; `make` is told. Default None: nothing.

    Raises:
      ValueError: a leaf that has no such view, or a sharding in which it cannot be worked on.
    """
    tree = unboxed(tree)
    known, leaves = names(tree), jax.tree.leaves(tree)
    mesh, specs = specs_of(method, known, leaves, shard)
    used = {a for spec in specs for entry in entries(spec, len(spec)) for a in entry}
    wanted = () if shard is None else shard.axes
    over_mesh = None if mesh is None else dict(mesh.shape)
    sizes = over_mesh or {a: jax.lax.axis_size(a) for a in sorted({*used, *wanted})}
    inside = shard is not None and shard.mesh is None
    least = 0 if shard is None else shard.min_dim

    views: list[View] = []
    shapes, cuts = [], []
    for name, x, spec in zip(known, leaves, specs, strict=True):
        over = entries(spec, len(x.shape))
        ways = [math.prod(sizes[a] for a in axes) for axes in over]
        shape = tuple(k * w if inside else k for k, w in zip(x.shape, ways, strict=True))
        views.append(view(method, name, shape, axes_of(layout, name, shape), over))
        shapes.append(shape)
        cuts.append(cut_of(name, over, views[-1].axes, shape, sizes))
        if views[-1].axes.splits and cuts[-1].columns and (inside or make is not None):
            raise fused_along_outputs(method, name)

    groups: dict[Any, list[Slot]] = {}
    sides = [
        tuple(math.prod(s[a] for a in group) for group in (v.axes.inputs, v.axes.outputs))
        for v, s in zip(views, shapes, strict=True)
    ]
    by_columns = {rows for (rows, width), cut in zip(sides, cuts, strict=True) if rows == width and cut.columns}
    for i, (x, own, (rows, width), cut) in enumerate(zip(leaves, views, sides, cuts, strict=True)):
        axes = own.axes
        count = math.prod(k for a, k in enumerate(shapes[i]) if a not in axes.inputs and a not in axes.outputs)
        count //= math.prod(sizes[a] for a in cut.batch)
        if not count * rows * width:
            continue
        fused = axes.splits if cut.columns else ()
        for part, columns in enumerate([width] if fused or not axes.splits else axes.splits):
            if callable(transpose):
                transposed = transpose(rows, columns)
            else:
                # Square matrices sharded along rows and along columns are one stack. Not where all are sharded alike:
                # rounding grows under Newton-Schulz, and the transpose of a matrix rounds otherwise.
                square = rows == columns and rows in by_columns and bool(cut.rows) and not cut.columns
                transposed = transpose and (rows > columns or square)
            transposed = transposed and not fused
            there = cut.transposed() if transposed else cut
            if make is None:  # Without a state, the order of the entries makes no difference.
                there = there._replace(row_order=(), column_order=())
            n, m = (columns, rows) if transposed else (rows, columns)
            there = there._replace(spread=spread_over(there, wanted, small=min(n, m) < least, sizes=sizes))
            alike = (own.dims, own.places, None if kinds is None else kinds[i])
            key = (n, m, jnp.dtype(wide_dtype(x.dtype)), there, fused, alike)
            groups.setdefault(key, []).append(Slot(i, part, count, transposed))

    # What is kept with its owner is the same on every kind of device.
    divided = mesh is None and not inside and jax.default_backend() == "cpu"
    divided &= not one_device() or sum(map(math.prod, shapes)) > SMALL
    stacks: list[Stack] = []
    for (n, m, dtype, cut, splits, (dims, places, kind)), slots in (merged(groups, sizes) if merge else groups).items():
        all_of = (*cut.columns, *cut.rows, *cut.spread)
        kept_alone = make is not None and mesh is not None and sum(slot.count for slot in slots) == 1
        single = tuple(a for a in all_of if sizes[a] > 1) if kept_alone else ()
        cut: Cut = cut._replace(spread=()) if single else needed(cut, sum(slot.count for slot in slots), sizes)
        lengths = (n, m) if dims is None else tuple(m if d is COLUMNS else d for d in dims)
        most = LEAVES_PER_STACK if divided else len(slots)
        for some in (tuple(slots[i : i + most]) for i in range(0, len(slots), most)):
            one = Stack(n, m, dtype, cut, splits, some, 0, lengths, places, kind, single)
            shared = 1 if single else math.prod(sizes[a] for a in (*cut.columns, *cut.rows, *cut.spread))
            stacks.append(one._replace(padded=-(-sum(slot.count for slot in some) // shared) * shared))
    return Plan(
        method,
        tuple(stacks),
        names=tuple(known),
        axes=tuple(v.axes for v in views),
        shapes=tuple(shapes),
        specs=tuple(specs),
        sources=tuple(v.sources for v in views),
        mesh=mesh,
        sizes=sizes,
        inside=inside,
        sides=view is as_matrices,
        transpose=bool(transpose),
        comm_dtype=None if shard is None else shard.comm_dtype,
        shard_given=shard is not None,
        make=make,
    )


def fused_along_outputs(method: str, name: str) -> ValueError:
    """What is wrong with fused weights that are sharded along their outputs."""
    return ValueError(
        f"{method}: the fused weights of {name!r} must not be sharded along their outputs; shard another axis, or give "
        f"their layout no `splits`"
    )
