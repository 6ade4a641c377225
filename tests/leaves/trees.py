"""Labelled parameter trees of trainers and model libraries: what each leaf of them means.

`data/*.json` hold names, shapes, roles, axes and fused weights; `data/more_trees.txt` more of them, one line per leaf.
"""

import functools
import json
import math
import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit.leaves import Axes

DATA = pathlib.Path(__file__).parent / "data"
_ROLES = {
    "m": "matrix", "c": "conv", "e": "embedding", "h": "head", "v": "vector", "x": "expert", "z": "scalar",
}  # fmt: skip
_LINE = re.compile(r"(\S+) \(([\d,]*)\) (\w+) (\S+)(?: @(\S+))?(?: split=(\d+):([\d,]+))?")


class Label(NamedTuple):
    """What one leaf means: `roles` that count as right, and `axes`, triples of (stack, inputs, outputs) that do, each
    with the role it is for or None; `splits` as (axis, sizes); `decay` None where that is open."""

    path: str
    shape: tuple[int, ...]
    axis_names: tuple[str | None, ...] | None
    roles: tuple[str, ...]
    axes: tuple[tuple[str | None, tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...]
    splits: tuple[int, tuple[int, ...]] | None
    decay: bool | None


def _of_json(leaf: dict[str, Any]) -> Label:
    sets = [{**leaf, "role": None}, *(leaf.get("also") or [])]
    axes = tuple((s.get("role"), tuple(s["stack_axes"]), tuple(s["input_axes"]), tuple(s["output_axes"])) for s in sets)
    roles = leaf["role"] if isinstance(leaf["role"], list) else [leaf["role"]]
    splits = leaf["splits"] and (leaf["splits"]["axis"], tuple(leaf["splits"]["sizes"]))
    names = leaf["logical_axes"] and tuple(leaf["logical_axes"])
    return Label(leaf["path"], tuple(leaf["shape"]), names, tuple(roles), axes, splits, leaf["decay"])


def _of_line(line: str) -> Label:
    found = _LINE.fullmatch(line)
    assert found, line
    path, shape, roles, letters, names, axis, sizes = found.groups()
    stack, inputs, outputs = (tuple(i for i, c in enumerate(letters) if c in of) for of in ("s", "i", "o-"))
    splits = (int(axis), tuple(map(int, sizes.split(",")))) if axis else None
    named = tuple(None if n == "None" else n for n in names.split(",")) if names else None
    size = tuple(int(n) for n in shape.split(",") if n)
    decay = {"v": False, "z": False, "e": None}.get(roles[0], None if set(roles) & set("ev") else True)
    if not size:
        stack, inputs, outputs = (), (), ()
    return Label(path, size, named, tuple(_ROLES[c] for c in roles), ((None, stack, inputs, outputs),), splits, decay)


@functools.cache
def trees() -> dict[str, tuple[Label, ...]]:
    """All trees by name."""
    out = {
        file.stem: tuple(map(_of_json, json.loads(file.read_text())["leaves"])) for file in sorted(DATA.glob("*.json"))
    }
    name = ""
    for line in (DATA / "more_trees.txt").read_text().splitlines():
        if line.startswith("#"):
            name = line[1:].partition("|")[0].strip()
            out[name] = ()
        elif line.strip() and not line.startswith(";"):
            out[name] = (*out[name], _of_line(line.strip()))
    return out


def boxed(name: str) -> bool:
    """Whether the trainer keeps the leaves of this tree in boxes."""
    file = DATA / f"{name}.json"
    return file.exists() and "box" in json.loads(file.read_text())


def nested(labels: Any, leaf: Any = None) -> Any:
    """The tree of nested dictionaries, of abstract arrays or of what `leaf` makes of a label."""
    make = leaf or (lambda label: jax.ShapeDtypeStruct(label.shape, jnp.float32))
    tree: dict[str, Any] = {}
    for label in labels:
        *above, last = label.path.split("/")
        node = tree
        for piece in above:
            node = node.setdefault(piece, {})
        node[last] = make(label)
    return tree


def faults(label: Label, axes: Axes) -> list[str]:
    """What is wrong with the axes decided for a leaf. An axis of size 1 is not compared."""

    def sides(*of: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [tuple(sorted(a for a in side if label.shape[a] != 1)) for side in of]

    out = []
    if axes.role not in label.roles:
        out.append(f"role {axes.role}, not {label.roles}")
    right = [sides(*rest) for role, *rest in label.axes if role in (None, axes.role)]
    if sides(axes.stack, axes.inputs, axes.outputs) not in right:
        out.append(f"{axes}, not {label.axes}")
    wanted: tuple[int, ...] = ()
    if label.splits is not None and label.splits[0] not in axes.stack:
        axis, sizes = label.splits
        other = math.prod(label.shape[a] for a in axes.outputs) // label.shape[axis]
        wanted = tuple(size * other for size in sizes)
    if axes.splits != wanted:
        out.append(f"splits {axes.splits}, not {wanted}")
    return out
