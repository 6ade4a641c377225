"""Tensors of any order on the path of the matrices: stacked by shape, one owner per tensor where there are owners.

leaf --layout--> its tensors (stack, d_1, ..., d_k) --flattened about a cut axis--> matrices --> one stack per shape
kernel: (B, d_1, ..., d_k), own -> the same, own            own has the leading axis B too

A stack axis of the layout enumerates tensors; all other axes are axes of the tensor. A scalar is a vector of one entry.
Weights fused by `splits` are tensors of their own: the inputs, and an axis of the outputs of one weight.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from gradkit.engine.core import wide_dtype
from gradkit.engine.matrices import MatrixSharding, plan_matrices
from gradkit.engine.placement import specs_of
from gradkit.engine.works import Work
from gradkit.leaves import Axes, Layout, axes_of, names, tensor_axes
from gradkit.leaves.derived import unboxed


def plan_tensors(
    tree: Any, make: Callable[..., Any], *, method: str, layout: Layout | None, shard: MatrixSharding | None = None
) -> Work:
    """Decides which tensors are worked on together, by whom, and what is kept of them.

    Args:
      tree: leaves; arrays, or `jax.ShapeDtypeStruct`s, or boxes of them.
      make: as `Work` takes it.
      method: the public name, for messages.
      layout: which axes are stacks.
      shard: as in `plan_matrices`.
    """
    tree = unboxed(tree)
    known, leaves = names(tree), jax.tree.leaves(tree)
    _, specs = specs_of(method, known, leaves, shard)
    inside = shard is not None and shard.mesh is None
    views: dict[str, Axes] = {}
    kinds: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    made_of: list[tuple[tuple[int, ...], ...]] = []
    for name, x, spec in zip(known, leaves, specs, strict=True):
        entries = [e if isinstance(e, tuple) else (e,) if e else () for e in (*spec, *[None] * (len(x.shape)))]
        ways = [math.prod(jax.lax.axis_size(a) for a in e) if inside else 1 for e in entries]
        shape = tuple(k * w for k, w in zip(x.shape, ways, strict=False))
        axes = axes_of(layout, name, shape)
        if axes.splits:
            if any(entries[a] for a in axes.outputs):
                raise ValueError(f"{method}: the fused weights of {name!r} must be whole along their outputs")
            own = axes.inputs
            cut = [a for a in own if entries[a]]
            if len(cut) > 1:
                raise ValueError(f"{method}: of the inputs of fused weights one may be cut; of {name!r} {cut} are")
            rows = (*cut, *(a for a in own if a not in cut))
            views[name] = axes._replace(inputs=rows)
            # The last axis has the length of each weight's own part.
            kinds.append(((*(shape[a] for a in own), 0), (*(rows.index(a) for a in own), len(own))))
            made_of.append((*((a,) for a in own), axes.outputs))
            continue
        own = tensor_axes(axes, shape)
        rows, columns = _matrix_view(method, name, own, [a for a in own if entries[a]])
        views[name] = axes._replace(inputs=rows, outputs=columns, splits=())
        flat = rows + columns
        kinds.append((tuple(shape[a] for a in own), tuple(flat.index(a) for a in own)))
        made_of.append(tuple((a,) for a in own) or ((),))
    # Accumulators are wide from the start, whatever init is shown.
    wide = [
        x.astype(wide_dtype(x.dtype))
        if isinstance(x, Tracer)
        else jax.ShapeDtypeStruct(x.shape, wide_dtype(x.dtype), sharding=getattr(x, "sharding", None))
        for x in leaves
    ]
    plan = plan_matrices(
        jax.tree.unflatten(jax.tree.structure(tree), wide),
        method=method,
        layout=lambda name, shape: views[name],
        shard=shard,
        transpose=False,
        kinds=kinds,
        divide=shard is None,
    )
    dims, places = [], []
    for stack in plan.stacks:
        lengths, order = kinds[stack.slots[0].leaf]
        dims.append((*lengths[:-1], stack.m) if views[plan.names[stack.slots[0].leaf]].splits else lengths or (1,))
        places.append(order or (0,))
    return Work(method, plan, make, dims=dims, places=places, axes=made_of, kinds=[None] * len(dims), inside=inside)


def _matrix_view(
    method: str, name: str, own: tuple[int, ...], cut: list[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of a tensor as rows and columns, such that a cut axis is the outer one of its side."""
    if len(cut) > 2:
        raise ValueError(f"{method}: of the axes of one tensor two may be cut over the mesh; of {name!r} {cut} are")
    column = cut[-1] if len(cut) == 2 else (own[-1] if own else None)
    row = [a for a in cut if a != column]
    rest = [a for a in own if a != column and a not in row]
    return (*row, *rest), () if column is None else (column,)


def total(work: Work, counts: Any) -> jax.Array:
    """The sum over all tensors of whole numbers that are kept: one number, or with owners one array per stack."""
    if work.alone:
        return counts
    sums = [jnp.sum(own.arrays, dtype=jnp.int32) for own in counts.values()]
    if work.inside:
        sums = [jax.lax.psum(s, k.owners) if k.owners else s for s, k in zip(sums, work.plan.stacks, strict=True)]
    return sum(sums, jnp.zeros((), jnp.int32))
