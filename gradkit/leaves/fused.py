"""Weights that are fused in one leaf: query, key and value; gate and up; the gates of a recurrent cell.

On an axis of their own they are a stack; side by side along an output axis they are `splits`.
"""

import math
from collections.abc import Sequence

from gradkit.leaves import naming
from gradkit.leaves.meaning import Own, Tree
from gradkit.leaves.stacks import Leaf

# A module with more layers than this is no attention, cell or feed-forward network.
_MANY = 24
_FUSED = {"qkv": 3, "kv": 2, "attn": 3, "wqkv": 3, "wkv": 2}


def find_fused_axes(leaves: Sequence[Leaf]) -> None:
    """Adds to the stacks the axes that count fused weights: of size 3 (query, key, value) or 2 (key and value; gate and
    up), by the name of the layer or of the axis.

    Args:
      leaves: of one tree, with their stacks.
    """
    for x in leaves:
        if x.meanings is not None:
            x.fused += [a for a in x.axes if x.meanings[a] == "fused"]
            x.stack += x.fused
            continue
        of = naming.words(naming.label(x.path))
        count = next((_FUSED[w] for w in of if w in _FUSED), 0)
        extra = 1 if x.kind == "vector" else 2
        if count == 3 and "attn" in of and not ("c" in of or "qkv" in of):
            count = 0
        if x.kind in ("table", "conv", "lora", "norm") or len(x.axes) <= extra:
            continue
        if count:
            at = next((a for a in x.axes[: 3 if x.kind != "vector" else 1] if x.shape[a] == count), None)
            if at is not None and len(x.axes) > extra:
                x.fused.append(at)
                x.stack.append(at)
        elif naming.direction(naming.label(x.path)) == "up" and len(x.axes) == extra + 1 and x.sizes[0] == 2:
            x.fused.append(x.axes[0])
            x.stack.append(x.axes[0])


def find_splits(tree: Tree, owns: dict[str, Own]) -> dict[str, tuple[int, ...]]:
    """The splits of every leaf that has fused outputs, along its flattened outputs.

    Args:
      tree: the leaves.
      owns: per name the role, inputs and outputs.
    """
    out: dict[str, tuple[int, ...]] = {}
    sides = {x.path: _sides(x, owns[x.path]) for x in tree.leaves}
    for x in tree.leaves:
        if x.kind in ("dense", "conv", "einsum", "free") and owns[x.path][1]:
            found = _recurrent(tree, x, sides) or _attention(tree, x, owns) or _state_space(tree, x, sides)
            if found:
                out[x.path] = found
    for x in tree.leaves:
        weight = tree.layers.get(naming.layer(x.path)) if x.kind == "vector" else None
        if weight is not None and weight.path in out and sides[x.path][1] == sum(out[weight.path]):
            out[x.path] = out[weight.path]
    for x in tree.leaves:
        if x.kind == "dense" and x.path not in out and owns[x.path][1]:
            found = _gate(tree, x, sides)
            if found:
                out[x.path] = found
    return out


def _sides(x: Leaf, own: Own) -> tuple[int, int]:
    return math.prod(x.shape[a] for a in own[1]), math.prod(x.shape[a] for a in own[2])


def _near(tree: Tree, x: Leaf, up: int) -> list[Leaf]:
    """The weights below the module that is `up` above the leaf's layer."""
    module = naming.layer(x.path)[0]
    for _ in range(up):
        module = module.rpartition("/")[0]
    found = tree.below.get(module, [])
    return found if len(found) <= _MANY else []


def _recurrent(tree: Tree, x: Leaf, sides: dict[str, tuple[int, int]]) -> tuple[int, ...] | None:
    of, inside = set(naming.words(naming.label(x.path))), naming.words(x.path)
    cell = any("lstm" in w for w in inside) or any("gru" in w for w in inside)
    name = naming.own(x.path)
    recurrent = (
        of & {"hh", "ih"}
        or naming.label(x.path).lower() in ("dense_h", "dense_i")
        or name in ("weight_hh", "weight_ih", "w_h", "w_i")
    )
    if not (cell or recurrent):
        return None
    hidden = [
        y
        for y in _near(tree, x, 0 if name in ("weight_hh", "weight_ih", "w_h", "w_i") else 1)
        if y.shape
        and (
            "hh" in naming.words(y.path)[-3:]
            or naming.label(y.path).lower() in ("dense_h", "h")
            or naming.own(y.path) in ("w_h", "weight_hh")
        )
    ]
    width = sides[x.path][1]
    for y in hidden:
        units = y.shape[y.axes[-2]] if y.kind == "conv" or len(y.axes) > 2 else sides[y.path][0]
        for gates in (4, 3):
            if width == gates * units:
                return (units,) * gates
    if (
        not hidden
        and name == "w"
        and any("lstm" in w for w in inside)
        and width % 4 == 0
        and width // 4 < sides[x.path][0]
    ):
        return (width // 4,) * 4
    return None


def _attention(tree: Tree, x: Leaf, owns: dict[str, Own]) -> tuple[int, ...] | None:
    """Sizes of fused queries, keys and values: what the output projection reads is the queries'."""
    lower = naming.label(x.path).lower()
    of = naming.words(lower)
    fused = any(w in ("qkv", "wqkv") for w in of) or lower in ("c_attn", "in_proj", "query_key_value")
    only_kv = any(w in ("kv", "wkv") for w in of) and "q" not in of
    if not (fused or only_kv) or (lower == "in_proj" and "attn" not in "".join(naming.words(x.path))):
        return None
    outputs = [x.shape[a] for a in owns[x.path][2]]
    width = math.prod(outputs)
    if only_kv and not fused:
        return (
            (width // 2, width // 2)
            if len(outputs) == 1 and width % 2 == 0 and "a" not in of and "b" not in of
            else None
        )
    if x.fused:
        return None
    for up in (1, 2, 3):
        for y in _near(tree, x, up):
            way = naming.direction(naming.label(y.path))
            if y is x or (way not in ("out", "down") and naming.label(y.path).lower() not in ("proj", "dense")):
                continue
            queries = math.prod(y.shape[a] for a in owns[y.path][1])
            rest = width - queries
            if 0 < rest <= 2 * queries and rest % 2 == 0:
                return queries, rest // 2, rest // 2
    return (width // 3,) * 3 if width % 3 == 0 else None


def _state_space(tree: Tree, x: Leaf, sides: dict[str, tuple[int, int]]) -> tuple[int, ...] | None:
    """Mamba: the input projection makes x and its gate, x_proj the step size and the two state projections."""
    module = naming.layer(x.path)[0].rpartition("/")[0]
    log = tree.decays.get(module)
    if log is None:
        return None
    lower, width = naming.label(x.path).lower(), sides[x.path][1]
    if len(log.sizes) == 1 and lower == "in_proj":  # Mamba 2: the gate, what the convolution reads, the step sizes
        by_label = {
            naming.label(y.path).lower(): y.path
            for y in _near(tree, x, 1)
            if len(y.path.split("/")) == len(x.path.split("/"))
        }
        if {"conv1d", "out_proj"} <= by_label.keys():
            found = sides[by_label["out_proj"]][0], sides[by_label["conv1d"]][1], log.sizes[0]
            return found if sum(found) == width else None
    if len(log.sizes) != 2:
        return None
    channels, state = log.sizes
    if lower == "in_proj" and width == 2 * channels:
        return channels, channels
    if lower == "x_proj" and width > 2 * state:
        return width - 2 * state, state, state
    return None


def _gate(tree: Tree, x: Leaf, sides: dict[str, tuple[int, int]]) -> tuple[int, ...] | None:
    """Twice as many outputs as the layer after it reads: a value and its gate."""
    read, made = sides[x.path]
    if made % 2 or x.kind == "conv" or sum(size > 1 for size in x.sizes) != 2:
        return None
    for up in (1, 2):
        near = [y for y in _near(tree, x, up) if y is not x and y.kind == "dense" and len(y.axes) == len(x.axes)]
        if len(near) > 3:
            return None
        for y in near:
            if sides[y.path] == (made // 2, read) and _before(x.path, y.path):
                return made // 2, made // 2
    return None


def _before(path: str, other: str) -> bool:
    """Whether names say that one layer feeds another: `net_0` and `net_2`, `wi` and `wo`."""
    if naming.direction(naming.label(path)) == "up" and naming.direction(naming.label(other)) in ("out", "down"):
        return True
    for one, two in zip(naming.parts(path), naming.parts(other), strict=False):
        if one != two:
            a, b = naming.words(one), naming.words(two)
            return a[:-1] == b[:-1] and a[-1].isdigit() and b[-1].isdigit() and int(a[-1]) < int(b[-1])
    return False
