"""The factor by which orthogonalised updates of matrices of different shapes become equally large.

s = sqrt(max(1, outputs / inputs))      "spectral"
s = 0.2 sqrt(max(inputs, outputs))      "match_rms_adamw"
s = 1                                   None
"""

import math
from typing import Any

import numpy as np

from gradkit.leaves import Axes

SCALES = ("spectral", "match_rms_adamw", None)


def shape_factor(axes: Axes, shape: tuple[int, ...], scale: str | None) -> Any:
    """s of every matrix of a leaf: a number, or an array that broadcasts, where fused weights differ.

    >>> shape_factor(Axes("matrix", (), (0,), (1,)), (4, 16), "spectral")
    2.0
    """

    def one(inputs: int, outputs: int) -> float:
        if scale is None:
            return 1.0
        return math.sqrt(max(1.0, outputs / inputs)) if scale == "spectral" else 0.2 * math.sqrt(max(inputs, outputs))

    inputs, outputs = (math.prod(shape[a] for a in group) for group in (axes.inputs, axes.outputs))
    if not axes.splits or not inputs:
        return one(inputs, outputs) if inputs else 1.0
    columns = np.repeat([one(inputs, width) for width in axes.splits], axes.splits)
    columns = columns.reshape([shape[a] for a in axes.outputs])
    columns = columns.transpose(np.argsort(axes.outputs))
    return columns.reshape([k if a in axes.outputs else 1 for a, k in enumerate(shape)])
