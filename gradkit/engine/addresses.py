"""Where state that is kept in stacks stands when it is kept by parameter: what a checkpoint needs for both forms.

in stacks        S/64x176: rows mlp/kernel[0,0], layers/kernel[0,0], layers/kernel[0,1]
by parameter     S/mlp/kernel/0 (64, 64), S/layers/kernel/0 (2, 64, 64)
"""

import functools
import itertools
from typing import Any, NamedTuple

from gradkit.engine.parts import COUNTED, LIKE, kind_of, parts_of
from gradkit.engine.stacks import Plan, Slot


class View(NamedTuple):
    """How the matrices or tensors of a weight are read off its parameter, and off a moment in the parameter's shape.

    Attributes:
      sides: for every axis of a tensor the axes of the parameter that it is flattened from; the other axes of the
        parameter enumerate tensors.
      part: of a weight that is fused with others, where it begins and ends along the last axis of a tensor.
      transposed: whether the matrices of the stack are the transposes.
    """

    sides: tuple[tuple[int, ...], ...]
    part: tuple[int, int] | None
    transposed: bool


class Address(NamedTuple):
    """Where what a field keeps of one weight stands when it is kept by parameter.

    Attributes:
      leaf: the name of the parameter.
      part: the number of the weight in it.
      names: for every array of the field its name below that of the field: `mlp/kernel/0`; empty for a count, which is
        one number for all weights.
      view: for a moment, which has the shape of the parameter, how its rows are read off it. None: what is behind the
        axes that enumerate the tensors is a row.
    """

    leaf: str
    part: int
    names: tuple[str, ...]
    view: View | None


class Addresses(tuple[Address, ...]):
    """Addresses as a static part of a state, whose hash is computed once: a compiled step asks for it at every call."""

    @functools.cached_property
    def _hash(self) -> int:
        return super().__hash__()

    def __hash__(self) -> int:
        return self._hash


def addresses_of(plan: Plan, s: int, value: Any) -> Addresses:
    """The addresses of the weights in a stack, in the order of its slots.

    Args:
      plan: of the parameters.
      s: the number of the stack.
      value: a field of it, a tree of parts.
    """
    kind, parts = kind_of(value), parts_of(value)

    def one(slot: Slot) -> Address:
        leaf = plan.names[slot.leaf]
        if kind == COUNTED:
            return Address(leaf, slot.part, ("",) * len(parts), None)
        if kind == LIKE:
            return Address(leaf, slot.part, (leaf,) * len(parts), _view(plan, slot))
        keys = (plan.piece(slot, path, part) for path, part in parts)
        return Address(leaf, slot.part, tuple("/".join(filter(None, (leaf, *own))) for own in keys), None)

    # Inside `shard_map` a device does not know which of the rows it has.
    return Addresses(() if plan.inside else map(one, plan.stacks[s].slots))


def _view(plan: Plan, slot: Slot) -> View:
    ends = [*itertools.accumulate(plan.axes[slot.leaf].splits, initial=0)]
    part = (ends[slot.part], ends[slot.part + 1]) if len(ends) > 1 else None
    return View(plan.sources[slot.leaf], part, slot.transposed)
