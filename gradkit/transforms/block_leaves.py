"""Blocks of leaves as leaves: short axes are joined, long axes divided, and a transformation works on the blocks."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.blocks import merged_axes
from gradkit.engine.core import inside, transformation
from gradkit.engine.fields import settled
from gradkit.engine.kronecker import merge_backwards
from gradkit.engine.owned import map_unowned
from gradkit.engine.placement import as_it_lay, everywhere
from gradkit.leaves import Layout, axes_of, map_named, names, tensor_axes
from gradkit.leaves.derived import derived, flatten, node_names

PAPER = Paper(
    "A Distributed Data-Parallel PyTorch Implementation of the Distributed Shampoo Optimizer for Training Neural "
    "Networks At-Scale",
    "Shi et al.",
    2023,
    "2309.06497",
)


def block_leaves(
    inner: optax.GradientTransformation,
    *,
    max_dim: int = 1024,
    merge_dims: bool = True,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lets a transformation work on blocks of bounded size, each as a leaf of its own.

    Axes of length 1 are dropped; from the last axis to the first, axes are joined while their product is at most
    max_dim; then every axis is divided into parts of max_dim, the last of which may be shorter. The tree becomes a
    dictionary from the name of a leaf to a dictionary from the place along the joined axes to a block,
    {"kernel": {"0_0": block, "0_1": block, ...}}. Stack axes of the layout are the leading axes of every block, and are
    not divided. An empty leaf is one block.

    Args:
      inner: any transformation; its `layout`, if it has one, sees the names of blocks, `dense/kernel/0_1`.
      max_dim: largest length of a block along an axis, >= 1. Default 1024 (official code).
      merge_dims: whether short axes are joined first. Default True (official code).
      layout: which axes are stacks.

    Returns:
      A transformation. State: that of `inner` on the blocks. Extra arguments that are functions of the parameters are
      not converted to functions of blocks. Collectives: leaves are all-gathered and sharded again; where that is too
      much, `gk.distributed_shampoo` divides a tensor into blocks on its owner device.

    Raises:
      ValueError: a `max_dim` below 1.

    Example:
      >>> jax.tree.map(jnp.shape, block_leaves(optax.trace(0.9), max_dim=2).init({"w": jnp.ones((2, 3))}).trace)
      {'w': {'0_0': (2, 2), '0_1': (2, 1)}}

    Reference: Shi et al. A Distributed Data-Parallel PyTorch Implementation of the Distributed Shampoo Optimizer for
    Training Neural Networks At-Scale. 2023, arXiv 2309.06497.
    """
    checks.layout(layout)
    checks.switch(merge_dims=merge_dims)
    max_dim = checks.integer("max_dim", max_dim, 1)
    below = inside(inner)

    def stacks(name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
        """The order of axes, stack axes first; the number of stack axes; the joined lengths of the others."""
        axes = axes_of(layout, name, shape)
        own = tensor_axes(axes, shape)
        dims = tuple(shape[a] for a in own)
        return (*axes.stack, *own), len(axes.stack), merge_backwards(dims, max_dim) if merge_dims else dims

    def cut(name: str, x: Any) -> Any:
        order, lead, dims = stacks(name, jnp.shape(x))
        if isinstance(x, jax.ShapeDtypeStruct):
            like = jax.eval_shape(lambda v: cut(name, v), jax.ShapeDtypeStruct(x.shape, x.dtype))
            return jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), like)
        x = everywhere(x).transpose(order)
        x = x.reshape(*x.shape[:lead], *dims)
        pieces = {"": x}
        for axis, length in enumerate(dims, start=lead):
            pieces = {
                f"{place}_{i // max_dim}" if place else f"{i // max_dim}": jax.lax.slice_in_dim(
                    v, i, min(i + max_dim, length), axis=axis
                )
                for place, v in pieces.items()
                for i in range(0, max(length, 1), max_dim)
            }
        return everywhere(pieces)

    def join(name: str, x: Any, pieces: Any) -> Any:
        order, lead, dims = stacks(name, jnp.shape(x))

        def at(place: tuple[str, ...]) -> jax.Array:
            if len(place) == len(dims):
                return pieces["_".join(place)]
            parts = [at((*place, str(i))) for i in range(-(-max(dims[len(place)], 1) // max_dim))]
            return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=lead + len(place))

        back = sorted(range(len(order)), key=lambda a: order[a])
        return as_it_lay(at(()).reshape([x.shape[a] for a in order]).transpose(back), x)

    def cut_tree(tree: Any) -> dict[str, Any]:
        return {name: cut(name, x) for name, x in zip(names(tree), jax.tree.leaves(tree), strict=True)}

    def init(params: optax.Params) -> Any:
        nodes, _ = flatten(params)
        pieces: dict[str, Any] = {}
        for name, node in zip(node_names(params), nodes, strict=True):
            (x,) = jax.tree.leaves(node)
            order, lead, dims = stacks(name, jnp.shape(x))
            groups = [
                tuple(order[lead + a] for a in group) for group in merged_axes([x.shape[a] for a in order[lead:]], dims)
            ]
            sources = [*((a,) for a in order[:lead]), *groups]
            pieces[name] = {place: derived(node, v, sources) for place, v in cut(name, x).items()}
        return below.init(pieces)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        own = None if params is None else cut_tree(params)
        before = state
        there, state = below.update(cut_tree(updates), state, own, **extra)
        pieces: Any = everywhere(there)
        state = map_unowned(settled, state, before)
        return map_named(lambda name, x: join(name, x, pieces[name]), updates), state

    return transformation("block_leaves", init, update)


register(
    block_leaves,
    form="wrapper",
    paper=PAPER,
    words=0,
    collectives="matrices",
    example={"max_dim": 3},
    opt_outs={"map_params": "its state is of blocks, under the names of their leaves"},
)
