"""What the axes of a parameter mean: its role, and which axes are stacked, summed over, or put out.

A layout is a function `(path, shape) -> Axes`. Where none is declared, `infer_layout` decides it for the whole tree;
`layout(...)` overrides that for the leaves that a selector picks. Every method that measures something per tensor (a
norm, a ratio, a projection) asks the layout, so ten layers that are stacked for a scan are ten tensors, and never one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gradkit import checks
from gradkit.leaves.axes import ROLES, Axes
from gradkit.leaves.infer import alone
from gradkit.leaves.scopes import Layout, axes_of


def _shift(axes: Axes, depth: int) -> Axes:
    """The same meaning below `depth` further leading stack axes."""
    return axes._replace(
        stack=(*range(depth), *(a + depth for a in axes.stack)),
        inputs=tuple(a + depth for a in axes.inputs),
        outputs=tuple(a + depth for a in axes.outputs),
    )


def layout(*overrides: tuple[Any, Mapping[str, Any]], default: Layout | None = None) -> Layout:
    """A layout that differs from another on the leaves that selectors pick.

    Args:
      *overrides: pairs (selector, changes), the first that matches counts. Changes: `stack`, the number
        of leading axes that enumerate separate tensors (or a tuple of axes); and any of `role`,
        `inputs`, `outputs`, `splits`, in the axes of the whole leaf. With `stack` alone, the meaning of
        the other axes is what `default` says of one member of the stack.
      default: the layout of everything else. Default None: what is inferred from the tree.

    Raises:
      ValueError: an unknown field or role; at use, an axis the leaf does not have or one with two meanings.

    Example:
      >>> from gradkit.leaves import by_path
      >>> mine = layout((by_path("layers/.*"), {"stack": 1}), (by_path(".*/qkv/kernel"), {"splits": (8, 8, 8)}))
      >>> mine("layers/mlp/kernel", (12, 8, 32))
      Axes(role='matrix', stack=(0,), inputs=(1,), outputs=(2,), splits=())
      >>> mine("attention/qkv/kernel", (8, 24)).splits
      (8, 8, 8)
    """
    for _, changes in overrides:
        for field in changes:
            checks.choice("a field of a layout override", field, Axes._fields)
        if "role" in changes:
            checks.choice("role", changes["role"], ROLES)

    def decide(path: str, shape: tuple[int, ...]) -> Axes:
        for selector, changes in overrides:
            if selector.test(path, tuple(shape), None):
                changes = dict(changes)
                stack = changes.pop("stack", None)
                axes = axes_of(default, path, shape, doubt=False)
                if isinstance(stack, int):
                    if axes.stack != tuple(range(stack)):
                        one = alone if default is None else default
                        axes = _shift(one(path, tuple(shape)[stack:]), stack)
                    if stack == 0 and axes.stack:  # the names above say a stack, the user says there is none
                        axes = alone(path.rpartition("/")[2], tuple(shape))._replace(stack=())
                elif stack is not None:
                    axes = axes._replace(stack=tuple(stack))
                fields: dict[str, Any] = {k: v if k == "role" else tuple(v) for k, v in changes.items()}
                return _checked(axes._replace(**fields), path, shape)
        return axes_of(default, path, shape)

    return decide


def _checked(axes: Axes, path: str, shape: Sequence[int]) -> Axes:
    used = [*axes.stack, *axes.inputs, *axes.outputs]
    if len(set(used)) != len(used) or any(not 0 <= a < len(shape) for a in used):
        raise ValueError(f"layout: {path!r} of shape {tuple(shape)} cannot have {axes}: every axis has one meaning")
    width = 1
    for axis in axes.outputs:
        width *= shape[axis]
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
