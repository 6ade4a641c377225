"""Norms of blocks of leaves: the whole tensor, one output unit, or all leaves together.

A block never mixes stacked layers: the layout says which axes enumerate separate tensors. On a mesh the numbers of
all leaves are one exchange (`sums.py`); a method asks for all it needs at once.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.leaves import Layout, axes_of, names, tensor_axes, unit_axes
from gradkit.transforms.core import abs_sq
from gradkit.transforms.sums import block_sums, own_parts, whole_shape

BLOCKS = ("tensor", "unit")


def block_axes(name: str, shape: tuple[int, ...], block: str, layout: Layout | None) -> tuple[int, ...]:
    """The axes that a block of this leaf spans."""
    axes = axes_of(layout, name, shape)
    return tensor_axes(axes, shape) if block == "tensor" else unit_axes(axes, shape)


def entries(name: str, block: str, layout: Layout | None, shape: tuple[int, ...]) -> int:
    """How many entries a block of this leaf has: of the whole leaf, also where a device has a shard of this shape."""
    return math.prod(whole_shape(name, shape)[a] for a in block_axes(name, shape, block, layout))


class Packed(NamedTuple):
    """One number per block of every leaf, in one vector per quantity: arithmetic on them is one small program, and on a
    mesh they are one exchange. The numbers are those of whole leaves, also where a device has a shard.

    Attributes:
      vectors: per quantity, the numbers of all blocks.
      sizes: per leaf, how many of them are its own.
      split: a vector -> per leaf, its numbers along the axes of the whole leaf (length 1 where summed).
      own: what `split` gives (or anything of such shapes) -> per leaf, what broadcasts against what this device has.
    """

    vectors: tuple[jax.Array, ...]
    sizes: list[int]
    split: Callable[[jax.Array], list[jax.Array]]
    own: Callable[[list[jax.Array]], list[jax.Array]]

    def spread(self, vector: jax.Array) -> list[jax.Array]:
        """A vector as one array per leaf that broadcasts against it."""
        return self.own(self.split(vector))


def packed_sums(
    known: Sequence[str], block: str, layout: Layout | None, *quantities: Sequence[jax.Array], like: Sequence[jax.Array]
) -> Packed:
    """The sums over every block of some leaves, of one or more quantities that have the shapes of the leaves.

    Args:
      known: the names of the leaves.
      block: "tensor" or "unit".
      layout: which axes are stacks and outputs.
      *quantities: per quantity one array per leaf, real.
      like: the leaves, whose dtypes `split` gives back.

    Returns:
      The sums; one exchange for all quantities and leaves.

    >>> from gradkit.leaves import default_layout
    >>> w = [jnp.full((3, 2, 8), 2.0)]
    >>> sums = packed_sums(["ScanBlock_0/kernel"], "tensor", default_layout, w, [x * x for x in w], like=w)
    >>> [v.tolist() for v in sums.vectors], sums.spread(sums.vectors[0])[0].shape
    ([[32.0, 32.0, 32.0], [64.0, 64.0, 64.0]], (3, 1, 1))
    """
    axes = [block_axes(name, x.shape, block, layout) for name, x in zip(known, like, strict=True)]
    n = len(axes)
    sums = block_sums([*known] * len(quantities), [x for row in quantities for x in row], axes * len(quantities))
    dtype = max((x.dtype for x in sums), key=lambda d: d.itemsize, default=jnp.dtype(jnp.float32))
    shapes, sizes = [x.shape for x in sums[:n]], [x.size for x in sums[:n]]
    ends = np.cumsum([0, *sizes])

    def split(vector: jax.Array) -> list[jax.Array]:
        parts = (vector[start:end] for start, end in itertools.pairwise(ends))
        return [
            part.reshape(shape).astype(jnp.finfo(x.dtype).dtype)
            for part, shape, x in zip(parts, shapes, like, strict=True)
        ]

    def own(whole: list[jax.Array]) -> list[jax.Array]:
        return own_parts(known, like, whole)

    def packed(row: list[jax.Array]) -> jax.Array:
        return jnp.concatenate([x.reshape(-1).astype(dtype) for x in row]) if row else jnp.zeros((0,), dtype)

    return Packed(tuple(packed(sums[i * n : (i + 1) * n]) for i in range(len(quantities))), sizes, split, own)


def packed_norms(known: Sequence[str], block: str, layout: Layout | None, *trees: Sequence[jax.Array]) -> Packed:
    """The Euclidean norm of every block of some leaves, for one or more lists of such leaves.

    >>> from gradkit.leaves import default_layout
    >>> norms = packed_norms(["ScanBlock_0/kernel"], "tensor", default_layout, [jnp.ones((3, 2, 8))])
    >>> norms.vectors[0].tolist()
    [4.0, 4.0, 4.0]
    """
    sums = packed_sums(known, block, layout, *([abs_sq(x) for x in leaves] for leaves in trees), like=trees[0])
    return sums._replace(vectors=tuple(jnp.sqrt(vector) for vector in sums.vectors))


def global_sums(*trees: Any) -> list[jax.Array]:
    """Per tree, the sum over all entries of all leaves; one exchange for all of them. Trees of one structure.

    >>> [float(x) for x in global_sums({"a": jnp.ones(3)}, {"a": jnp.arange(3.0)})]
    [3.0, 3.0]
    """
    rows = [jax.tree.leaves(tree) for tree in trees]
    if not rows or not rows[0]:
        return [jnp.zeros((), jnp.float32) for _ in trees]
    flat = [x for row in rows for x in row]
    sums = block_sums(names(trees[0]) * len(rows), flat, [tuple(range(x.ndim)) for x in flat])
    dtype = max((x.dtype for x in sums), key=lambda d: d.itemsize)
    scalars = [x.reshape(()).astype(dtype) for x in sums]
    n = len(rows[0])
    return [sum(scalars[i + 1 : i + n], scalars[i]) for i in range(0, n * len(rows), n)]


def global_square(tree: Any) -> jax.Array:
    """The sum of |x|^2 over all entries of all leaves; 0 of an empty tree."""
    return global_sums(jax.tree.map(abs_sq, tree))[0]


def global_norm(tree: Any) -> jax.Array:
    """Euclidean norm over all leaves together; 0 of an empty tree."""
    return jnp.sqrt(global_square(tree))
