"""What a transformation will do to each parameter, as a table, without allocating anything."""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from gradkit.leaves.layout import Layout, default_layout
from gradkit.leaves.paths import names
from gradkit.leaves.selectors import resolve_mask


class Method(NamedTuple):
    """What an optimizer says of itself for `describe`."""

    name: str
    learning_rate: Any = None
    weight_decay: Any = None
    weight_decay_mask: Any = None


class Row(NamedTuple):
    """One parameter: its name, shape, role and stack axes; the method, rate and decay it gets; the
    bytes of its state."""

    name: str
    shape: tuple[int, ...]
    role: str
    stack: tuple[int, ...]
    method: str
    rate: str
    decay: str
    state_bytes: int


class Description(NamedTuple):
    """The rows of `describe`; printed as an aligned table."""

    rows: tuple[Row, ...]
    shared_bytes: int

    def __str__(self) -> str:
        head = ("name", "shape", "role", "stack", "method", "rate", "decay", "state bytes")
        cells = [
            (r.name, _list("x", r.shape), r.role, _list(",", r.stack), r.method, r.rate, r.decay, f"{r.state_bytes:,}")
            for r in self.rows
        ]
        total = sum(r.state_bytes for r in self.rows) + self.shared_bytes
        cells.append(("total", "", "", "", "", "", "", f"{total:,}"))
        widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
        pad = [str.ljust] * 7 + [str.rjust]
        return "\n".join(
            "  ".join(p(cell, w) for p, cell, w in zip(pad, row, widths, strict=True)).rstrip()
            for row in [head, *cells]
        )


def _list(separator: str, numbers: tuple[int, ...]) -> str:
    return separator.join(map(str, numbers)) or "-"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if callable(value):
        return "schedule"
    return f"{value:g}" if isinstance(value, int | float) else "traced"


def _method(tx: optax.GradientTransformation) -> Method:
    known = getattr(tx.init, "method", None)
    return known or Method(str(getattr(tx.update, "__qualname__", "unknown")).split(".<locals>")[0])


def describe(tx: optax.GradientTransformation, params: Any, *, layout: Layout = default_layout) -> Description:
    """For every leaf: name, role, stack axes, method, learning rate, weight decay, bytes of state.

    Args:
      tx: any transformation. Of optimizers of this library and of `groups` of them the method, rate and
        decay are known; of others the name of the function that made them.
      params: parameters, or `jax.ShapeDtypeStruct`s of them.
      layout: how roles and stack axes are decided.

    Returns:
      A description; `print` it.

    Example:
      >>> import gradkit as gk
      >>> print(describe(gk.adam(1e-3), {"Dense_0": {"kernel": np.zeros((8, 4), np.float32)}}))
      name            shape  role    stack  method  rate   decay  state bytes
      Dense_0/kernel  8x4    matrix  -      adam    0.001  -              256
      total                                                               268
    """
    abstract = jax.eval_shape(lambda: jax.tree.map(jax.numpy.asarray, params)) if _has_values(params) else params
    leaves, structure = jax.tree.flatten(abstract)
    known = names(abstract)
    grouped = getattr(tx.init, "groups", None)
    if grouped is None:
        methods = [_method(tx)] * len(leaves)
    else:
        label_tree, members = grouped
        methods = [_method(members[label]) for label in jax.tree.leaves(label_tree(abstract))]

    owned = dict.fromkeys(known, 0)
    shared = 0
    state = jax.eval_shape(tx.init, abstract)
    for path, x in zip(names(state), jax.tree.leaves(state), strict=True):
        size = int(np.prod(x.shape)) * x.dtype.itemsize
        owner = _owner(path, owned)
        if owner is None:
            shared += size
        else:
            owned[owner] += size

    rows = []
    for i, (name, x, method) in enumerate(zip(known, leaves, methods, strict=True)):
        axes = layout(name, tuple(x.shape))
        decayed = jax.tree.leaves(resolve_mask(method.weight_decay_mask, structure.unflatten(leaves)))[i]
        decay = _text(method.weight_decay if decayed else None)
        row = (
            name,
            tuple(x.shape),
            axes.role,
            axes.stack,
            method.name,
            _text(method.learning_rate),
            decay,
            owned[name],
        )
        rows.append(Row(*row))
    return Description(tuple(rows), shared)


def _has_values(params: Any) -> bool:
    return any(not isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params))


def _owner(path: str, known: dict[str, int]) -> str | None:
    """The parameter a leaf of the state belongs to: the one its path ends with, the longest such."""
    pieces = path.split("/")
    return next((tail for i in range(len(pieces)) if (tail := "/".join(pieces[i:])) in known), None)
