"""Norms of blocks of leaves: the whole tensor, one output unit, or all leaves together.

A block never mixes stacked layers: the layout says which axes enumerate separate tensors.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.leaves import Layout, tensor_axes, unit_axes
from gradkit.transforms.core import abs_sq

BLOCKS = ("tensor", "unit")


def block_axes(name: str, shape: tuple[int, ...], block: str, layout: Layout) -> tuple[int, ...]:
    """The axes that a block of this leaf spans."""
    axes = layout(name, shape)
    return tensor_axes(axes, shape) if block == "tensor" else unit_axes(axes, shape)


def block_norm(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Euclidean norm over some axes, which stay with length 1."""
    return jnp.sqrt(jnp.sum(abs_sq(x), axis=axes, keepdims=True))


class Packed(NamedTuple):
    """One number per block of every leaf, in one vector, so that arithmetic on them is one small program, and on a
    mesh one collective; `spread` gives them back as one array per leaf that broadcasts against it."""

    vector: jax.Array
    spread: Callable[[jax.Array], list[jax.Array]]


def packed_norms(names: Sequence[str], leaves: Sequence[jax.Array], block: str, layout: Layout) -> Packed:
    """The Euclidean norm of every block of some leaves.

    >>> from gradkit.leaves import default_layout
    >>> norms = packed_norms(["ScanBlock_0/kernel"], [jnp.ones((3, 2, 8))], "tensor", default_layout)
    >>> norms.vector.tolist(), norms.spread(norms.vector)[0].shape
    ([4.0, 4.0, 4.0], (3, 1, 1))
    """
    axes = [block_axes(name, x.shape, block, layout) for name, x in zip(names, leaves, strict=True)]
    shapes = [tuple(1 if a in own else n for a, n in enumerate(x.shape)) for x, own in zip(leaves, axes, strict=True)]
    squares = [jnp.sum(abs_sq(x), axis=own).reshape(-1) for x, own in zip(leaves, axes, strict=True)]
    dtype = max((x.dtype for x in squares), key=lambda d: d.itemsize, default=jnp.dtype(jnp.float32))
    ends = np.cumsum([0, *(x.size for x in squares)])

    def spread(vector: jax.Array) -> list[jax.Array]:
        parts = (vector[start:end] for start, end in itertools.pairwise(ends))
        return [
            part.reshape(shape).astype(jnp.finfo(x.dtype).dtype)
            for part, shape, x in zip(parts, shapes, leaves, strict=True)
        ]

    vector = jnp.concatenate([x.astype(dtype) for x in squares]) if squares else jnp.zeros((0,), dtype)
    return Packed(jnp.sqrt(vector), spread)


def global_norm(tree: Any) -> jax.Array:
    """Euclidean norm over all leaves together; 0 of an empty tree."""
    squares = [jnp.sum(abs_sq(x)) for x in jax.tree.leaves(tree)]
    if not squares:
        return jnp.zeros((), jnp.float32)
    dtype = max((x.dtype for x in squares), key=lambda d: d.itemsize)
    return jnp.sqrt(sum((x.astype(dtype) for x in squares[1:]), squares[0].astype(dtype)))
