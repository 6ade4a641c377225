"""Sums over the matrices of leaves, also of weights that are fused into one leaf, with one exchange for all of them.

    leaf (stack, inputs, outputs = q | k | v)  ->  three numbers per layer of the stack

A block here is what a matrix method works on: one layer of a stack, one expert, one of several fused weights. Of a leaf
without inputs or without outputs it is the whole tensor. The numbers of fused weights are sums over the leaf with the
outputs of all others set to 0, so that nothing is sliced along an axis that may be sharded.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gradkit.engine.core import cast, real_dtype
from gradkit.engine.sums import block_sums, own_parts, whole_shape
from gradkit.leaves import Axes, Layout, axes_of, tensor_axes

BLOCKS = ("tensor", "unit")
# The axes that are summed, of the meaning of a leaf's axes and its shape.
Over = Callable[[Axes, Sequence[int]], tuple[int, ...]]


def matrix_axes(axes: Axes, shape: Sequence[int]) -> tuple[int, ...]:
    """The axes of one matrix: its inputs and outputs; of a leaf that is no matrix those of one tensor.

    >>> matrix_axes(Axes("matrix", (), (1,), (2,)), (5, 3, 4)), matrix_axes(Axes("vector", (0,), (), (1,)), (5, 4))
    ((1, 2), (1,))
    """
    if axes.inputs and axes.outputs:
        return tuple(sorted((*axes.inputs, *axes.outputs)))
    return tensor_axes(axes, shape)


def block_of(block: str) -> Over:
    """The axes that a block spans: "tensor", a matrix; "unit", the inputs of one output.

    >>> block_of("unit")(Axes("matrix", (), (1,), (2,)), (5, 3, 4))
    (1,)
    """
    return matrix_axes if block == "tensor" else _unit_axes


def _unit_axes(axes: Axes, shape: Sequence[int]) -> tuple[int, ...]:
    return axes.inputs if axes.inputs and axes.outputs else tensor_axes(axes, shape)


def part_masks(axes: Axes, shape: Sequence[int]) -> list[np.ndarray | None]:
    """Per fused weight 1 along its own outputs and 0 along the others, in a shape that broadcasts against the leaf;
    a single None where nothing is fused.

    >>> [m.ravel().tolist() for m in part_masks(Axes("matrix", (), (0,), (1,), (2, 1)), (5, 3))]
    [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    if len(axes.splits) < 2:
        return [None]
    owner = np.repeat(np.arange(len(axes.splits)), axes.splits).reshape([shape[a] for a in axes.outputs])
    owner = owner.transpose(np.argsort(axes.outputs))
    owner = owner.reshape([k if a in axes.outputs else 1 for a, k in enumerate(shape)])
    return [(owner == j).astype(np.float64) for j in range(len(axes.splits))]


class Block(NamedTuple):
    """One block of a leaf: the number of the leaf, and of its fused weights; the mask of the weight."""

    leaf: int
    part: int
    mask: Any


class MatrixSums(NamedTuple):
    """The sums, per quantity one array per block, of the same numbers on every device.

    Attributes:
      blocks: which blocks there are.
      parts: per quantity, per block, its sums, along the axes of the leaf, of length 1 where summed.
      known: the names of the leaves.
      like: the leaves.
    """

    blocks: tuple[Block, ...]
    parts: tuple[list[jax.Array], ...]
    known: Sequence[str]
    like: Sequence[jax.Array]

    def each(self, function: Callable[..., jax.Array], *more: Sequence[Any]) -> list[jax.Array]:
        """Per block, a function of its sums (one argument per quantity), and of what `more` has for it."""
        rows = zip(*self.parts, *more, strict=True)
        return [
            cast(function(*row), real_dtype(self.like[block.leaf].dtype))
            for block, row in zip(self.blocks, rows, strict=True)
        ]

    def per_leaf(self, values: Sequence[jax.Array]) -> list[jax.Array]:
        """Values of blocks as one array per leaf, which broadcasts against what this device has of it."""
        out: dict[int, jax.Array] = {}
        for block, value in zip(self.blocks, values, strict=True):
            if block.mask is not None:
                value = value * jnp.asarray(block.mask, value.dtype)
            out[block.leaf] = out[block.leaf] + value if block.leaf in out else value
        return own_parts(self.known, self.like, [out[i] for i in range(len(self.like))])


def entries_of(name: str, layout: Layout | None, shape: Sequence[int], over: Over = matrix_axes) -> list[int]:
    """The number of entries of the blocks of a leaf, per fused weight; of the leaf that all devices have together.

    >>> from gradkit.leaves import by_path, layout
    >>> entries_of("qkv", layout((by_path("qkv"), {"splits": (2, 1)})), (5, 3))
    [10, 5]
    """
    shape = whole_shape(name, tuple(shape))
    axes = axes_of(layout, name, shape)
    summed = over(axes, shape)
    total = math.prod(shape[a] for a in summed)
    if len(axes.splits) < 2 or not set(axes.outputs) & set(summed):
        return [total]
    return [total // sum(axes.splits) * width for width in axes.splits]


def matrix_sums(
    known: Sequence[str],
    layout: Layout | None,
    *quantities: Sequence[jax.Array],
    over: Over | Sequence[Over] = matrix_axes,
    like: Sequence[jax.Array],
) -> MatrixSums:
    """The sums over every block of some leaves.

    Args:
      known: the names of the leaves.
      layout: which axes are inputs, outputs and stacks, and which weights are fused.
      *quantities: per quantity one real array per leaf, of its shape.
      over: the axes that are summed, of the meaning of a leaf's axes and its shape; one for all leaves, or one for
        each. Default: those of one matrix.
      like: the leaves.

    >>> from gradkit.leaves import by_path, layout
    >>> qkv = layout((by_path("qkv"), {"splits": (2, 1)}))
    >>> x = [jnp.array([[1.0, 2.0, 4.0]])]
    >>> sums = matrix_sums(["qkv"], qkv, x, like=x)
    >>> [s.ravel().tolist() for s in sums.parts[0]], sums.per_leaf(sums.parts[0])[0].tolist()
    ([[3.0], [4.0]], [[3.0, 3.0, 4.0]])
    """
    axes = [axes_of(layout, name, x.shape) for name, x in zip(known, like, strict=True)]
    functions = [over] * len(axes) if callable(over) else list(over)
    summed = [function(own, x.shape) for function, own, x in zip(functions, axes, like, strict=True)]
    blocks: list[Block] = []
    for i, (name, x, own) in enumerate(zip(known, like, axes, strict=True)):
        shape = whole_shape(name, x.shape)
        split = set(own.outputs) & set(summed[i])
        blocks += [Block(i, j, mask) for j, mask in enumerate(part_masks(own, shape) if split else [None])]

    def masked(x: jax.Array, block: Block) -> jax.Array:
        if block.mask is None:
            return x
        mask = jnp.asarray(block.mask, x.dtype)
        return x * own_parts([known[block.leaf]], [like[block.leaf]], [mask])[0]

    flat = [masked(row[block.leaf], block) for row in quantities for block in blocks]
    names = [known[block.leaf] for block in blocks] * len(quantities)
    sums = block_sums(names, flat, [summed[block.leaf] for block in blocks] * len(quantities))
    n = len(blocks)
    return MatrixSums(tuple(blocks), tuple(sums[i * n : (i + 1) * n] for i in range(len(quantities))), known, like)


def zero_blocks(known: Sequence[str], layout: Layout | None, leaves: Sequence[Any], over: Over) -> list[str]:
    """The names of the leaves that are known to have a block of zeros: of traced leaves and of shapes nothing is known.

    >>> zero_blocks(["a", "b"], None, [jnp.ones((2, 2)), jnp.zeros((2, 2))], matrix_axes)
    ['b']
    """
    found = []
    for name, x in zip(known, leaves, strict=True):
        if isinstance(x, Tracer) or not isinstance(x, jax.Array) or not x.size:
            continue
        axes = axes_of(layout, name, x.shape)
        summed = over(axes, x.shape)
        masks = part_masks(axes, x.shape) if set(axes.outputs) & set(summed) else [None]
        with jax.ensure_compile_time_eval():
            empty = [(x == 0) if m is None else (x == 0) | jnp.asarray(m == 0) for m in masks]
            if any(bool(jnp.any(jnp.all(e, axis=summed))) for e in empty):
                found.append(name)
    return found
