"""The meaning of the axes of one leaf."""

from typing import NamedTuple

ROLES = ("matrix", "conv", "embedding", "head", "vector", "scalar", "expert")


class Axes(NamedTuple):
    """The meaning of the axes of one leaf. Axes that stand in none of the three lists are batch axes of
    the matrix view: they separate matrices, but not tensors.

    Attributes:
      role: one of `ROLES`.
      stack: axes that enumerate separate tensors (layers under a scan, experts, ensemble members).
      inputs: axes a forward pass sums over.
      outputs: axes that enumerate output units.
      splits: sizes along the flattened output axes of weights fused into this leaf (query, key and
        value; heads); empty where nothing is fused.
    """

    role: str
    stack: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    splits: tuple[int, ...] = ()
