"""The matrix view of a leaf: a batch of (inputs, outputs) matrices, and the way back.

leaf (any axes) --transpose, reshape--> (batch, inputs, outputs) --splits--> one array per fused weight
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gradkit.leaves.layout import Axes


def _plan(shape: Sequence[int], axes: Axes) -> tuple[tuple[int, ...], tuple[int, int, int]]:
    batch = tuple(a for a in range(len(shape)) if a not in axes.inputs and a not in axes.outputs)
    sizes = [math.prod(shape[a] for a in group) for group in (batch, axes.inputs, axes.outputs)]
    return batch + axes.inputs + axes.outputs, (sizes[0], sizes[1], sizes[2])


def to_matrices(x: jax.Array, axes: Axes) -> tuple[jax.Array, ...]:
    """A leaf as matrices: for every fused weight one array (batch, inputs, outputs); one where nothing
    is fused.

    Stack and batch axes become the batch. Inputs and outputs are flattened in their own order.

    Args:
      x: the leaf.
      axes: the meaning of its axes.

    Returns:
      A tuple with one array per entry of `axes.splits`, or of one array.

    Example:
      >>> x = jnp.zeros((3, 3, 8, 16))
      >>> [m.shape for m in to_matrices(x, Axes("conv", (), (0, 1, 2), (3,)))]
      [(1, 72, 16)]
      >>> [m.shape for m in to_matrices(jnp.zeros((6, 8, 24)), Axes("matrix", (0,), (1,), (2,), (8, 8, 8)))]
      [(6, 8, 8), (6, 8, 8), (6, 8, 8)]
    """
    order, sizes = _plan(x.shape, axes)
    matrices = x.transpose(order).reshape(sizes)
    if not axes.splits:
        return (matrices,)
    ends = [sum(axes.splits[: i + 1]) for i in range(len(axes.splits) - 1)]
    return tuple(jnp.split(matrices, ends, axis=2))


def from_matrices(parts: Sequence[jax.Array], shape: Sequence[int], axes: Axes) -> jax.Array:
    """The inverse of `to_matrices`: the leaf of this shape whose matrices these are.

    Args:
      parts: what `to_matrices` returned, or arrays of the same shapes.
      shape: the shape of the leaf.
      axes: the meaning of its axes.

    Returns:
      The leaf.

    Example:
      >>> x, axes = jnp.arange(24.0).reshape(2, 3, 4), Axes("matrix", (0,), (2,), (1,))
      >>> bool((from_matrices(to_matrices(x, axes), x.shape, axes) == x).all())
      True
    """
    order, _ = _plan(shape, axes)
    matrices = parts[0] if len(parts) == 1 else jnp.concatenate(list(parts), axis=2)
    inverse = sorted(range(len(order)), key=lambda a: order[a])
    return matrices.reshape([shape[a] for a in order]).transpose(inverse)
