"""A factor of the updates of every matrix, by its numbers of inputs and outputs.

spectral           s = sqrt(max(1, outputs / inputs))
ratio              s = sqrt(outputs / inputs)
match_rms_adamw    s = 0.2 sqrt(max(inputs, outputs))
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.leaves import Axes

SCALES = ("spectral", "ratio", "match_rms_adamw", None)


Scale = str | Callable[[int, int], float] | None


def shape_factor(axes: Axes, shape: tuple[int, ...], scale: Scale) -> Any:
    """s of every matrix of a leaf: a number, or an array that broadcasts, where fused weights differ.

    `scale` is one of the names above, None for 1, or a function (inputs, outputs) -> s.

    >>> shape_factor(Axes("matrix", (), (0,), (1,)), (4, 1), "spectral")
    1.0
    >>> shape_factor(Axes("matrix", (), (0,), (1,)), (4, 1), "ratio")
    0.5
    >>> shape_factor(Axes("matrix", (), (0,), (1,)), (4, 1), lambda inputs, outputs: inputs)
    4.0
    """

    def one(inputs: int, outputs: int) -> float:
        if scale is None:
            return 1.0
        if callable(scale):
            return float(scale(inputs, outputs))
        if scale == "match_rms_adamw":
            return 0.2 * math.sqrt(max(inputs, outputs))
        ratio = outputs / inputs
        return math.sqrt(max(1.0, ratio) if scale == "spectral" else ratio)

    inputs, outputs = (math.prod(shape[a] for a in group) for group in (axes.inputs, axes.outputs))
    if not axes.splits or not inputs:
        return one(inputs, outputs) if inputs else 1.0
    columns = np.repeat([one(inputs, width) for width in axes.splits], axes.splits)
    columns = columns.reshape([shape[a] for a in axes.outputs])
    columns = columns.transpose(np.argsort(axes.outputs))
    return columns.reshape([k if a in axes.outputs else 1 for a, k in enumerate(shape)])


def scale_by_shape(tree: Any, axes: Sequence[Axes], shapes: Sequence[tuple[int, ...]], scale: Scale) -> Any:
    """A tree of which every leaf is multiplied by its s, of the shape that it has on all devices together."""
    leaves, structure = jax.tree.flatten(tree)
    s = [shape_factor(own, shape, scale) for own, shape in zip(axes, shapes, strict=True)]
    return structure.unflatten(
        [x * (k if isinstance(k, float) else jnp.asarray(k, x.dtype)) for x, k in zip(leaves, s, strict=True)]
    )
