"""What the axes of a parameter mean: its role, and which axes are stacked, summed over, or put out.

A layout is a function `(path, shape) -> Axes`. `default_layout` knows the names that Flax linen and
Flax NNX give; `layout(...)` overrides it for the leaves that a selector picks. Every method that
measures something per tensor (a norm, a ratio, a projection) asks the layout, so ten layers that are
stacked for a scan are ten tensors, and never one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradkit import checks
from gradkit.leaves.axes import ROLES, Axes

Layout = Callable[[str, tuple[int, ...]], Axes]

# Names that flax.linen gives to modules made by nn.scan and nn.vmap: their first axis is a stack.
_LIFTED = re.compile(r"(Scan|Vmap)[A-Z]\w*_\d+")
_HEAD = re.compile(r"lm_head|head|logits|classifier|unembed\w*|output_layer")
_CONV = re.compile(r"(?i)\w*conv\w*")


def default_layout(path: str, shape: tuple[int, ...]) -> Axes:
    """The layout of Flax names; what it decides for a model is printed by `describe`.

    In this order, on the name `a/b/c` of a leaf:

    * every component that linen's `nn.scan` or `nn.vmap` named by itself (`ScanBlock_0`,
      `VmapExpert_0`) makes one leading axis a stack axis; with `Vmap` the role is "expert". Other
      stacks (NNX, modules with a name of their own) are declared with `layout`;
    * of the remaining axes: none is a "scalar", one a "vector";
    * `embedding` is an (entries, features) "embedding";
    * a kernel below a component with "conv" in its name has inputs = all but the last axis (HWIO);
    * rank 2 is (inputs, outputs), and a "head" below `head`, `lm_head`, `logits`, `classifier`;
    * rank 3 below `query`, `key`, `value` is (inputs, heads, features), outputs = the last two;
      below `out` it is (heads, features, outputs), inputs = the first two;
    * rank 3 and more otherwise: the last two axes are (inputs, outputs), those before them are batch
      axes of the matrix view, and together they are one tensor. A rank-4 or rank-5 `kernel` is a conv.

    Args:
      path: the name of the leaf, `a/b/c`.
      shape: its shape.

    Returns:
      The meaning of its axes.

    Example:
      >>> default_layout("Dense_0/kernel", (64, 10))
      Axes(role='matrix', stack=(), inputs=(0,), outputs=(1,), splits=())
      >>> default_layout("ScanBlock_0/Conv_0/kernel", (6, 3, 3, 8, 16))
      Axes(role='conv', stack=(0,), inputs=(1, 2, 3), outputs=(4,), splits=())
    """
    pieces = path.split("/")
    lifted = [piece for piece in pieces if _LIFTED.fullmatch(piece)]
    depth = min(len(lifted), len(shape))
    role, inputs, outputs = _plain(pieces, len(shape) - depth)
    if role == "matrix" and any(piece.startswith("Vmap") for piece in lifted):
        role = "expert"
    return _shift(Axes(role, (), inputs, outputs), depth)


def _plain(pieces: list[str], rank: int) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    name, above = pieces[-1], pieces[:-1]
    if rank == 0:
        return "scalar", (), ()
    if rank == 1:
        return "vector", (), (0,)
    everything_but_last, last = tuple(range(rank - 1)), (rank - 1,)
    if name == "embedding":
        return "embedding", everything_but_last, last
    if any(_CONV.fullmatch(piece) for piece in above[-1:]) or (rank in (4, 5) and name == "kernel"):
        return "conv", everything_but_last, last
    if rank == 3 and above and above[-1] in ("query", "key", "value"):
        return "matrix", (0,), (1, 2)
    if rank == 3 and above and above[-1] == "out":
        return "matrix", (0, 1), (2,)
    head = rank == 2 and any(_HEAD.fullmatch(piece) for piece in pieces)
    return "head" if head else "matrix", (rank - 2,), last


def _shift(axes: Axes, depth: int) -> Axes:
    """The same meaning below `depth` further leading stack axes."""
    return axes._replace(
        stack=(*range(depth), *(a + depth for a in axes.stack)),
        inputs=tuple(a + depth for a in axes.inputs),
        outputs=tuple(a + depth for a in axes.outputs),
    )


def layout(*overrides: tuple[Any, Mapping[str, Any]], default: Layout = default_layout) -> Layout:
    """A layout that differs from another on the leaves that selectors pick.

    Args:
      *overrides: pairs (selector, changes), the first that matches counts. Changes: `stack`, the number
        of leading axes that enumerate separate tensors (or a tuple of axes); and any of `role`,
        `inputs`, `outputs`, `splits`, in the axes of the whole leaf. With `stack` alone, the meaning of
        the other axes is what `default` says of one member of the stack.
      default: the layout of everything else.

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
                if isinstance(stack, int):
                    axes = _shift(default(path, tuple(shape)[stack:]), stack)
                else:
                    axes = default(path, tuple(shape))
                    axes = axes if stack is None else axes._replace(stack=tuple(stack))
                return _checked(
                    axes._replace(**{k: v if k == "role" else tuple(v) for k, v in changes.items()}), path, shape
                )
        return default(path, tuple(shape))

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
