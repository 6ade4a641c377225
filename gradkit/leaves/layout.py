"""What the axes of a parameter mean: its role, and which axes are stacked, summed over, or put out.

A layout is a function `(path, shape) -> Axes`. Where none is declared, `infer_layout` decides it for the whole tree;
`layout(...)` overrides that for the leaves that a selector picks. Every method that measures something per tensor (a
norm, a ratio, a projection) asks the layout, so ten layers that are stacked for a scan are ten tensors, and never one.
"""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gradkit import checks
from gradkit.leaves.axes import ROLES, Axes
from gradkit.leaves.infer import alone
from gradkit.leaves.naming import lifts
from gradkit.leaves.paths import masked_names, names
from gradkit.leaves.scopes import Layout, axes_of, outermost
from gradkit.leaves.selectors import near


def _axes(field: str, value: Any) -> tuple[int, ...]:
    """The axes, or sizes, of a field of an override; of a number of stack axes, those."""
    if isinstance(value, numbers.Integral) and field == "stack" and not isinstance(value, bool) and int(value) >= 0:
        return tuple(range(int(value)))
    whole = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)
    if not whole or not all(isinstance(a, numbers.Integral) and not isinstance(a, bool) and int(a) >= 0 for a in value):
        either = "the number of leading stack axes or " if field == "stack" else ""
        what = "sizes" if field == "splits" else "axes, numbered from 0"
        instead = '"stack": 2 for the axes 0 and 1, "stack": (1,) for the axis 1' if either else f'"{field}": (0,)'
        raise ValueError(f"layout: {field} must be {either}a tuple of {what}, got {value!r}; write {instead}")
    return tuple(int(a) for a in value)


def _below(axes: Axes, stack: Sequence[int], rank: int) -> Axes:
    """The meaning of one member of a stack, in the axes of the leaf; the stack axes of the member are stack axes too.

    >>> _below(Axes("matrix", (), (0,), (1,)), (1,), 3)
    Axes(role='matrix', stack=(1,), inputs=(0,), outputs=(2,), splits=())
    """
    own = [a for a in range(rank) if a not in stack]
    inner, inputs, outputs = (tuple(own[a] for a in part) for part in (axes.stack, axes.inputs, axes.outputs))
    return axes._replace(stack=tuple(sorted((*stack, *inner))), inputs=inputs, outputs=outputs)


def _stacked(axes: Axes, stack: tuple[int, ...], path: str, shape: tuple[int, ...], default: Layout | None) -> Axes:
    """The meaning of a leaf, inferred as `axes`, where a user says which of its axes enumerate tensors."""
    if any(a >= len(shape) for a in stack):
        raise ValueError(
            f"layout: {path!r} of shape {shape} has no axis {max(stack)} that can be a stack. "
            f'Give a selector that does not match it, or declare fewer stack axes ("stack": 0 for none)'
        )
    if set(stack) <= set(axes.stack) and (stack or not axes.stack):
        return axes
    member = tuple(size for a, size in enumerate(shape) if a not in stack)
    pieces = path.split("/")
    if default is None:
        # The stacks that names announce are those declared: a member of `ScanBlock_0/up/kernel` is an `up/kernel`.
        lifted = [i for i, piece in enumerate(pieces) if lifts(piece)][: len(stack) or None]
        one = alone("/".join(piece for i, piece in enumerate(pieces) if i not in lifted), member)
    else:
        one = default(path, member)
    if not stack and one.stack:
        one = alone(pieces[-1], member)._replace(stack=())
    return _below(one, stack, len(shape))


def layout(*overrides: tuple[Any, Mapping[str, Any]], default: Layout | None = None) -> Layout:
    """A layout that differs from another on the leaves that selectors pick.

    Args:
      *overrides: pairs (selector, changes), the first that matches counts. Changes are any of `role`, one of
        `gk.leaves.ROLES`; `stack`, `inputs` and `outputs`, tuples of axes of the leaf, numbered from 0; and `splits`,
        sizes along the flattened outputs. An integer `"stack": n` is the number of leading stack axes, not an axis:
        2 declares the axes 0 and 1, and `(1,)` the axis 1 alone. `"stack": 0` and `"stack": ()` declare that the leaf
        is one tensor. The axes that are not declared mean what `default` says of one member of the stack; where the
        members are stacks themselves, as experts in stacked layers are, theirs are stack axes too, unless `inputs` or
        `outputs` names them.
      default: the layout of everything else. Default None: what is inferred from the tree.

    Returns:
      A layout.

    Raises:
      ValueError: an unknown field or role, or a value that is no tuple of axes; at use, an axis the leaf does not have
        or one with two meanings, and a selector that matches no leaf of the tree that `init` was given.

    Example:
      >>> from gradkit.leaves import by_path
      >>> mine = layout((by_path("layers/.*"), {"stack": 1}), (by_path(".*/qkv/kernel"), {"splits": (8, 8, 8)}))
      >>> mine("layers/mlp/kernel", (12, 8, 32))
      Axes(role='matrix', stack=(0,), inputs=(1,), outputs=(2,), splits=())
      >>> layout((by_path("layers/.*"), {"stack": (1,)}))("layers/mlp/kernel", (8, 12, 32))
      Axes(role='matrix', stack=(1,), inputs=(0,), outputs=(2,), splits=())
      >>> mine("attention/qkv/kernel", (8, 24)).splits
      (8, 8, 8)
    """
    rules: list[tuple[Any, dict[str, Any]]] = []
    for selector, changes in overrides:
        for field in changes:
            checks.choice("a field of a layout override", field, Axes._fields)
        if "role" in changes:
            checks.choice("role", changes["role"], ROLES)
        rules.append((selector, {k: v if k == "role" else _axes(k, v) for k, v in changes.items()}))

    seen: list[Any] = []

    def decide(path: str, shape: tuple[int, ...]) -> Axes:
        shape = tuple(shape)
        _check_rules(rules, seen)
        for selector, changes in rules:
            if selector.test(path, shape, None):
                axes = axes_of(default, path, shape, doubt=False)
                declared = {k: v for k, v in changes.items() if k != "stack"}
                named = {*declared.get("inputs", ()), *declared.get("outputs", ())}
                if "stack" in changes:
                    axes = _stacked(axes, changes["stack"], path, shape, default)
                    named -= {*changes["stack"]}
                stack = tuple(a for a in axes.stack if a not in named)
                return _checked(axes._replace(stack=stack, **declared), path, shape)
        return axes_of(default, path, shape)

    return decide


def _check_rules(rules: Sequence[tuple[Any, Any]], seen: list[Any]) -> None:
    """Raises where a rule matches no leaf of the tree that a transformation was given, as a misspelled name does.

    Every `init` is checked; an `update` only of a method whose `init` asks for no layout, and then by names alone, as
    shapes inside `shard_map` are those of shards.
    """
    scope = outermost()
    if scope is None or id(rules) in scope.checked or (seen and not scope.starts):
        return
    scope.checked.add(id(rules))
    known, others = names(scope.tree), masked_names(scope.tree)
    if not known:
        return
    shapes = [np.shape(x) for x in jax.tree.leaves(scope.tree)]
    for selector, changes in rules:
        by_name = selector.by_name and any(selector.test(name, (), None) for name in (*known, *others))
        by_shape = not selector.by_name and (
            bool(others) or not scope.starts or any(map(selector.test, known, shapes, [None] * len(known)))
        )
        if not by_name and not by_shape and selector.required:
            offer = near(selector.text, [*known, *others]) or f"; the leaves are {', '.join(map(repr, known[:12]))}"
            offer += "" if offer.endswith("?") else "."
            raise ValueError(
                f"layout: the rule ({selector.text}, {changes}) matches no leaf{offer} Leave it out for parameters "
                "without such a leaf"
            )
    seen[:] = [True]


def _checked(axes: Axes, path: str, shape: Sequence[int]) -> Axes:
    used = [*axes.stack, *axes.inputs, *axes.outputs]
    if len(set(used)) != len(used) or any(not 0 <= a < len(shape) for a in used):
        raise ValueError(
            f"layout: {path!r} of shape {tuple(shape)} cannot have {axes}: every axis has one meaning, and is less "
            f'than {len(shape)}; declare "stack", "inputs" and "outputs" together'
        )
    width = math.prod(shape[axis] for axis in axes.outputs)
    if axes.splits and sum(axes.splits) != width:
        raise ValueError(f"layout: the splits {axes.splits} of {path!r} must add up to its {width} outputs")
    return axes


def tensor_axes(axes: Axes, shape: Sequence[int]) -> tuple[int, ...]:
    """The axes of one tensor: all but the stack. A norm over them is the norm of one layer.

    Args:
      axes: the meaning of the leaf's axes.
      shape: its shape.

    Returns:
      The axes, ascending.

    Example:
      >>> tensor_axes(Axes("matrix", (0,), (1,), (2,)), (12, 64, 64))
      (1, 2)
    """
    return tuple(a for a in range(len(shape)) if a not in axes.stack)


def unit_axes(axes: Axes, shape: Sequence[int]) -> tuple[int, ...]:
    """The axes of one output unit: all but the stack and the outputs.

    Args:
      axes: the meaning of the leaf's axes.
      shape: its shape.

    Returns:
      The axes, ascending; of a tensor with at most one axis longer than 1, all its axes.

    Example:
      >>> unit_axes(Axes("conv", (), (0, 1, 2), (3,)), (3, 3, 8, 16))
      (0, 1, 2)
    """
    own = tensor_axes(axes, shape)
    if sum(shape[a] > 1 for a in own) <= 1:
        return own
    return tuple(a for a in own if a not in axes.outputs)
