"""What the axes of a leaf that are no stack mean: its role, inputs and outputs, by its name and its neighbours.

In this order: names of logical axes; the bias of the same layer, whose axes are the layer's outputs; whether the layer
reads or writes the width of the model; the order in which other leaves of the same name have their inputs and outputs.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from gradkit.leaves import naming
from gradkit.leaves.stacks import Leaf

Own = tuple[str, tuple[int, ...], tuple[int, ...]]


@dataclasses.dataclass
class Tree:
    """What the leaves of a tree say of each other.

    Attributes:
      leaves: all leaves, with their stacks.
      biases: (module, label) -> the bias of that layer.
      layers: (module, label) -> the weight of that layer.
      below: module -> the weights of the layers below it.
      decays: module -> the leaf `A_log` in it, of a state-space layer.
      widths: module -> sizes of the vectors of normalizations and features of embeddings below it.
      orders: a leaf's own name -> whether its inputs stand first.
    """

    leaves: Sequence[Leaf]
    biases: dict[tuple[str, str], Leaf]
    layers: dict[tuple[str, str], Leaf]
    below: dict[str, list[Leaf]]
    decays: dict[str, Leaf]
    widths: dict[str, set[int]]
    orders: dict[str, bool]

    def width(self, leaf: Leaf) -> set[int]:
        """The sizes that the model's width has near a leaf."""
        module = leaf.path
        while module:
            module = module.rpartition("/")[0]
            if self.widths.get(module):
                return self.widths[module]
        return set()

    def bias(self, leaf: Leaf) -> list[int]:
        """The sizes of the bias of a leaf's layer, without those of 1; empty where there is none."""
        found = self.biases.get(naming.layer(leaf.path))
        return [size for size in found.sizes if size > 1] if found is not None and found is not leaf else []


def read(leaves: Sequence[Leaf]) -> Tree:
    """The tree of leaves whose stacks are known."""
    biases, layers = {}, {}
    for x in leaves:
        own = naming.own(x.path)
        if x.kind == "vector" and (
            own in ("bias", "b") or own.startswith(("b_", "bias_")) or own.endswith(("_b", "_bias"))
        ):
            biases[naming.layer(x.path)] = x
        elif x.kind in ("dense", "conv", "head", "einsum", "free"):
            layers[naming.layer(x.path)] = x
    heads = Counter(naming.in_head(x.path) for x in layers.values())
    for x in layers.values():
        module = naming.in_head(x.path)
        if module and heads[module] == 1 and x.kind == "dense":
            x.kind = "head"
    decays = {naming.layer(x.path)[0]: x for x in leaves if naming.own(x.path) == "a_log"}
    below: dict[str, list[Leaf]] = {"": list(layers.values())}
    for x in layers.values():
        module = x.path
        while module := module.rpartition("/")[0]:
            below.setdefault(module, []).append(x)
    tree = Tree(leaves, biases, layers, below, decays, {}, {})
    for x in leaves:
        _note_width(tree, x)
    votes: dict[str, Counter[bool]] = {}
    for x in leaves:
        vote = _order(tree, x)
        if vote is not None and (len(x.sizes) == 2 or x.kind == "conv"):
            votes.setdefault(naming.own(x.path), Counter())[vote] += 1
    tree.orders = {own: counted[True] >= counted[False] for own, counted in votes.items()}
    return tree


def _note_width(tree: Tree, x: Leaf) -> None:
    own = [size for size in x.sizes if size > 1]
    words = naming.words(naming.label(x.path))
    norm = x.kind == "norm" or (x.kind == "vector" and naming.own(x.path) in ("scale", "gamma", "weight"))
    of_heads = any(
        w in ("q", "k", "v", "query", "key", "value")
        for w in words + naming.words("_".join(naming.parts(x.path)[-3:-1]))
    )
    if norm and not of_heads and len(own) == 1:
        size = own[0]
    elif x.kind == "table" and len(own) == 2:
        size = own[-1]
    else:
        return
    module = x.path
    while module:
        module = module.rpartition("/")[0]
        tree.widths.setdefault(module, set()).add(size)


def _order(tree: Tree, x: Leaf) -> bool | None:
    """Whether a leaf's inputs stand first, as far as it shows; None where it does not."""
    if x.kind not in ("dense", "conv", "head", "einsum") or len(x.sizes) < 2:
        return None
    first, last = x.sizes[0], x.sizes[-1]
    bias = tree.bias(x)
    if len(bias) == 1 and (first == bias[0]) != (last == bias[0]):
        return last == bias[0]
    if naming.own(x.path) != "weight" or x.kind == "conv":
        return None
    width, way = tree.width(x), naming.direction(naming.label(x.path))
    if (first in width) == (last in width) or not way or x.kind == "head" or "/" not in naming.layer(x.path)[0]:
        return None  # a layer at the root may be the head, whatever its name
    return (first in width) == (way in ("query", "up"))


def in_first(tree: Tree, x: Leaf) -> bool:
    """Whether the inputs of a leaf stand before its outputs."""
    vote = _order(tree, x)
    if vote is not None:
        return vote
    return tree.orders.get(
        naming.own(x.path), not naming.own(x.path).startswith("weight_") and naming.own(x.path) != "weight"
    )


def meaning(tree: Tree, x: Leaf) -> Own:
    """The role, inputs and outputs of a leaf."""
    axes = x.axes
    real = [a for a in axes if x.shape[a] > 1]
    if not axes:
        return "scalar", (), ()
    if x.kind in ("vector", "free vector"):
        return _vector(tree, x)
    if len(real) <= 1 and x.kind != "conv" and len(axes) < 3 and not _of_bias(tree, x):
        lone = len(axes) < 2 or naming.own(x.path) not in ("", *naming.WEIGHTS)
        if lone:
            return "vector", (), tuple(axes)
    if x.kind == "norm":
        if len(real) > 1:
            x.doubts.append("a weight of a normalization with more than one axis")
        return "vector", (), tuple(axes)
    if x.meanings is not None:
        named = _by_names(tree, x)
        if named is not None:
            return named
    if x.kind == "table":
        return _table(x)
    if x.kind == "lora":
        second = naming.own(x.path).endswith("b") or naming.label(x.path).lower().endswith("b")
        return (
            ("matrix", tuple(axes[:1]), tuple(axes[1:])) if second else ("matrix", tuple(axes[:-1]), tuple(axes[-1:]))
        )
    if x.kind == "state space":  # (states, inputs) or (outputs, states), and real and imaginary parts as a batch
        return "matrix", tuple(axes[1:2]), tuple(axes[:1])
    if len(axes) > 2 and any("spectral" in word or "fourier" in word for word in naming.words(x.path)):
        return "matrix", tuple(axes[:1]), tuple(axes[1:2])  # one matrix for every frequency
    if _is_conv(tree, x):
        return _conv(tree, x)
    inputs, outputs = _sides(tree, x)
    role = "expert" if x.experts else "head" if x.kind == "head" else "matrix"
    return role, inputs, outputs


def _of_bias(tree: Tree, x: Leaf) -> bool:
    return bool(tree.bias(x)) and len(x.axes) > 1


def _vector(tree: Tree, x: Leaf) -> Own:
    axes = x.axes
    if x.kind == "vector" and sum(x.shape[a] > 1 for a in axes) > 1:
        weight = tree.layers.get(naming.layer(x.path))
        sizes = [size for size in x.sizes if size > 1]
        explained = (weight is not None and any(s in weight.sizes for s in sizes)) or naming.is_query(x.path)
        if not explained:
            x.doubts.append("a bias or scale with more than one axis, none of which its siblings show to be a stack")
    return ("scalar" if not axes else "vector"), (), tuple(axes)


def _table(x: Leaf) -> Own:
    axes = x.axes
    if "quantizer" in naming.words(naming.label(x.path)) and naming.own(x.path) == "embeddings" and len(axes) == 2:
        return "embedding", (axes[1],), (axes[0],)  # Haiku: (features, entries)
    if "rel" in naming.words(naming.own(x.path)) and naming.own(x.path) not in naming.GENERIC:
        return "embedding", tuple(axes[-1:]), tuple(axes[:-1])  # T5X: (heads, buckets)
    real = [a for a in axes if x.shape[a] > 1] or axes
    split = axes.index(real[-1]) if len(real) > 1 else 0
    return "embedding", tuple(axes[:split]), tuple(axes[split:])


def _by_names(tree: Tree, x: Leaf) -> Own | None:
    """What the names of the axes say outright."""
    named = x.meanings or ()
    axes = x.axes
    if all(named[a] == "vector" for a in axes):
        return "vector", (), tuple(axes)
    entries = tuple(a for a in axes if named[a] in ("vocab", "position"))
    width = tuple(a for a in axes if named[a] == "width")
    if not entries or not width or len(entries) + len(width) != len(axes):
        return None
    head = x.kind == "head" or (x.kind != "table" and width[0] < entries[0])
    return ("head", width, entries) if head else ("embedding", entries, width)


def _is_conv(tree: Tree, x: Leaf) -> bool:
    rank = len(x.axes)
    if rank < 2 or x.kind in ("einsum", "head") or x.experts:
        return False
    if x.kind == "conv":
        return rank > 2 or x.sizes[0] <= 16 < x.sizes[1]
    if rank not in (4, 5) or naming.own(x.path) not in naming.WEIGHTS or naming.is_query(x.path):
        return False
    return len(tree.bias(x)) < 2 and (x.meanings is None or "inner" not in x.meanings[: x.axes[-2]])


def _conv(tree: Tree, x: Leaf) -> Own:
    axes, bias = x.axes, tree.bias(x)
    if len(axes) > 2 and len(bias) == 1 and x.sizes[-2] == bias[0] not in (x.sizes[-1], x.sizes[0]):
        return "conv", (*axes[:-2], axes[-1]), (axes[-2],)
    if not bias and naming.own(x.path) == "w" and "transpose" in naming.words(naming.label(x.path)):
        return "conv", (*axes[:-2], axes[-1]), (axes[-2],)  # Haiku: (..., outputs, inputs)
    if in_first(tree, x) or len(axes) < 3:
        return "conv", tuple(axes[:-1]), tuple(axes[-1:])
    return "conv", tuple(axes[1:]), tuple(axes[:1])


def _sides(tree: Tree, x: Leaf) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The inputs and outputs of a dense layer of any rank; axes in neither separate the blocks of one matrix."""
    axes = x.axes
    first = in_first(tree, x)
    way = naming.direction(naming.label(x.path))
    if len(axes) == 2:
        one, two = axes
        width = _width_axes(tree, x)
        if (x.kind == "head" and naming.own(x.path) not in ("kernel", "w")) and len(width) == 1:
            return (width[0],), tuple(a for a in axes if a != width[0])
        if x.meanings is not None and len(width) == 1 and way and naming.own(x.path) not in ("kernel", "w"):
            rest = tuple(a for a in axes if a != width[0])
            return ((width[0],), rest) if way in ("query", "up") else (rest, (width[0],))
        if x.kind == "free" and _gated(x) and len(width) == 1:
            rest = tuple(a for a in axes if a != width[0])
            return ((width[0],), rest)
        return ((one,), (two,)) if first else ((two,), (one,))
    by_bias = _outputs_by_bias(tree.bias(x), x, first)
    if by_bias is not None:
        return tuple(a for a in axes if a not in by_bias), by_bias
    width = _width_axes(tree, x)
    if way in ("query", "up") or (x.kind == "einsum" and not way):
        chosen = _pick(axes, width, first)
        if chosen is None:
            chosen = axes[-2] if x.kind == "einsum" else axes[0] if first else axes[-1]
        return (chosen,), tuple(a for a in axes if a != chosen)
    if way in ("out", "down"):
        chosen = _pick(axes, width, not first)
        if chosen is None:
            chosen = axes[-1] if first else axes[0]
        return tuple(a for a in axes if a != chosen), (chosen,)
    ends = [a for a in (axes[0], axes[-1]) if a in width]
    if len(ends) == 1 and len(axes) == 3:
        x.doubts.append("which of its axes are inputs is taken from their sizes alone")
        rest = tuple(a for a in axes if a != ends[0])
        return ((ends[0],), rest) if (ends[0] == axes[0]) == first else (rest, (ends[0],))
    x.doubts.append("its last two axes are taken as inputs and outputs, those before as separate blocks")
    return tuple(axes[-2:-1]), tuple(axes[-1:])


def _gated(x: Leaf) -> bool:
    return naming.direction(naming.label(x.path)) in ("up", "query")


def _width_axes(tree: Tree, x: Leaf) -> list[int]:
    if x.meanings is not None and "width" in x.meanings:
        return [a for a in x.axes if x.meanings[a] == "width"]
    width = tree.width(x)
    return [a for a in x.axes if x.shape[a] in width]


def _pick(axes: Sequence[int], width: Sequence[int], first: bool) -> int | None:
    """The axis of the model's width: at the end where this order puts it, else wherever it is."""
    end, other = (axes[0], axes[-1]) if first else (axes[-1], axes[0])
    if end in width:
        return end
    if other in width:
        return other
    return width[0] if len(width) == 1 else None


def _outputs_by_bias(bias: Sequence[int], x: Leaf, first: bool) -> tuple[int, ...] | None:
    """The axes of a weight that its bias has, in order; None where they cannot be found."""
    axes = x.axes
    if not bias or len(bias) >= len(axes):
        return None
    sizes = x.sizes
    n = len(bias)
    ends = [axes[-n:], axes[:n]] if first else [axes[:n], axes[-n:]]
    for end in ends:
        if [x.shape[a] for a in end] == list(bias):
            return tuple(end)
    found, at = [], 0
    for size in bias:
        while at < len(sizes) and sizes[at] != size:
            at += 1
        if at == len(sizes):
            return None
        found.append(axes[at])
        at += 1
    return tuple(found)
