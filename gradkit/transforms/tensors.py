"""Tensors of any order on the path of the matrices: stacked by shape, one owner per tensor, state with the owner.

leaf --layout--> its tensors (stack, d_1, ..., d_k) --flattened about a cut axis--> matrices --> one stack per shape
kernel: (B, d_1, ..., d_k), own -> the same, own            own has the leading axis B too

A stack axis of the layout enumerates tensors; all other axes are axes of the tensor. A scalar is a vector of one entry.
Weights fused by `splits` are tensors of their own: the inputs, and an axis of the outputs of one weight.
What the owner keeps comes as `Owned`, which knows along which mesh axes it is cut, and which tensor every row is of. It
is padded until the owners divide it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gradkit.leaves import Axes, Layout, axes_of, names, tensor_axes
from gradkit.transforms.core import wide_dtype
from gradkit.transforms.matrices import MatrixSharding, Plan, plan_matrices
from gradkit.transforms.owned import Owned, kept, map_owned, placed
from gradkit.transforms.placement import everywhere, specs_of


class Tensors(NamedTuple):
    """A plan, and per stack the lengths of the axes of its tensors, and their places in the flattened order; the public
    name of the method, for messages."""

    method: str
    plan: Plan
    dims: tuple[tuple[int, ...], ...]
    places: tuple[tuple[int, ...], ...]
    inside: bool


def plan_tensors(tree: Any, *, method: str, layout: Layout | None, shard: MatrixSharding | None = None) -> Tensors:
    """Decides which tensors are worked on together, and by whom.

    Args:
      tree: leaves; arrays, or `jax.ShapeDtypeStruct`s.
      method: the public name, for messages.
      layout: which axes are stacks.
      shard: as in `plan_matrices`.
    """
    known, leaves = names(tree), jax.tree.leaves(tree)
    _, specs = specs_of(method, known, leaves, shard)
    inside = shard is not None and shard.mesh is None
    views: dict[str, Axes] = {}
    kinds: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
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
            continue
        own = tensor_axes(axes, shape)
        rows, columns = _matrix_view(method, name, own, [a for a in own if entries[a]])
        views[name] = axes._replace(inputs=rows, outputs=columns, splits=())
        flat = rows + columns
        kinds.append((tuple(shape[a] for a in own), tuple(flat.index(a) for a in own)))
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
    )
    dims, places = [], []
    for stack in plan.stacks:
        lengths, order = kinds[stack.slots[0].leaf]
        dims.append((*lengths[:-1], stack.m) if views[plan.names[stack.slots[0].leaf]].splits else lengths or (1,))
        places.append(order or (0,))
    return Tensors(method, plan, tuple(dims), tuple(places), inside)


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


def init_owned(
    tensors: Tensors, make: Callable[[int, tuple[int, ...], Any, Any], Any], marks: Sequence[Any] | None = None
) -> tuple[Owned, ...]:
    """State for every stack, where it belongs.

    Args:
      tensors: the plan.
      make: (number of tensors, lengths of their axes, dtype, their marks) -> a tree of arrays with that many rows.
      marks: per stack a number for each tensor, such as its phase. Default None: there are none.
    """
    plan = tensors.plan
    return tuple(
        placed(plan, stack, make(kept(plan, stack)[0], dims, wide_dtype(stack.dtype), own))
        for stack, dims, own in zip(plan.stacks, tensors.dims, marks or (None,) * len(plan.stacks), strict=True)
    )


def map_tensors(
    kernel: Callable[..., Any],
    tree: Any,
    tensors: Tensors,
    owned: Sequence[Owned],
    numbers: Mapping[str, Any],
    more: Sequence[Any] = (),
) -> tuple[Any, tuple[Owned, ...]]:
    """Applies a function of a batch of tensors, and of what belongs to them, once per stack.

    Args:
      kernel: (B, d_1, ..., d_k), own, numbers, and as much of `more` -> the same shape, own.
      tree: the leaves.
      tensors: what `plan_tensors` says of them.
      owned: what `init_owned` made, or this function.
      numbers: what the kernel reads besides, by name: arrays, or Python numbers, which stay what they are.
      more: further trees like `tree`, which enter with it.
    """
    plan = tensors.plan
    alone = plan.mesh is None and not tensors.inside
    if alone:
        tree, more = everywhere((tree, tuple(more)))

    def on(dims: tuple[int, ...], places: tuple[int, ...]) -> Callable[..., Any]:
        forth = (0, *(p + 1 for p in places))
        back = tuple(int(i) for i in np.argsort(forth))
        flat = [dims[places.index(i)] for i in range(len(dims))]

        def one(x: jax.Array, own: Any, given: Any, *rest: jax.Array) -> tuple[jax.Array, Any]:
            come = [v.reshape(-1, *flat).transpose(forth) for v in (x, *rest)]
            y, own = kernel(come[0], own, given, *come[1:])
            return y.transpose(back).reshape(x.shape), own

        return one

    kernels = [on(dims, places) for dims, places in zip(tensors.dims, tensors.places, strict=True)]
    tree, stacks = map_owned(tensors.method, kernels, tree, plan, owned, dict(numbers), more)
    return tree, everywhere(stacks) if alone else stacks


def total(tensors: Tensors, counts: Sequence[jax.Array]) -> jax.Array:
    """The sum of whole numbers that owners keep, one array per stack, over all tensors."""
    sums = [jnp.sum(c, dtype=jnp.int32) for c in counts]
    if tensors.inside:
        sums = [jax.lax.psum(s, k.owners) if k.owners else s for s, k in zip(sums, tensors.plan.stacks, strict=True)]
    return sum(sums, jnp.zeros((), jnp.int32))
