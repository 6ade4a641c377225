"""Which axes of a tree enumerate separate tensors: the evidence of siblings.

A leaf's name says how many axes it has of its own: a scale one, a dense kernel two, a query kernel two or three. Where
all leaves below a module have one axis more than that, of one size and at one position, the module is stacked along it.
The largest such module counts, and what is left of its leaves is looked at again: stacks stand in stacks.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from gradkit.leaves import naming

# How many axes a leaf of each kind has of its own. A kind that is missing may have any number.
_RANKS = {
    "vector": (1,),
    "norm": (1,),
    "table": (2,),
    "head": (2,),
    "lora": (2, 3),
    "dense": (2,),
    "query": (2, 3),
    "conv": (3, 4, 5),
    "einsum": (2, 3, 4),
}


@dataclasses.dataclass
class Leaf:
    """One leaf while its meaning is being decided.

    Attributes:
      path: its name.
      shape: its shape.
      kind: what the name says (`naming.kind`).
      meanings: what the names of its axes say, or None.
      stack: the axes found to be stacks.
      experts: those of them that enumerate experts.
      fused: those of them that enumerate fused weights.
      doubts: why the decision is not certain.
    """

    path: str
    shape: tuple[int, ...]
    kind: str
    meanings: tuple[str, ...] | None = None
    stack: list[int] = dataclasses.field(default_factory=list)
    experts: list[int] = dataclasses.field(default_factory=list)
    fused: list[int] = dataclasses.field(default_factory=list)
    doubts: list[str] = dataclasses.field(default_factory=list)

    @property
    def axes(self) -> list[int]:
        """The axes that are no stack."""
        return [a for a in range(len(self.shape)) if a not in self.stack]

    @property
    def sizes(self) -> list[int]:
        """The sizes of `axes`."""
        return [self.shape[a] for a in self.axes]


def _misfit(leaf: Leaf, without: int | None = None, wide: int = 0) -> float:
    """How badly the number of a leaf's own axes fits its kind, if one more axis is a stack."""
    axes = [a for a in leaf.axes if a != without]
    of = leaf.kind
    if of == "vector" and naming.is_query(leaf.path):
        allowed: tuple[int, ...] | None = (1, 2)
    elif of == "dense" and (naming.is_query(leaf.path) or naming.direction(naming.label(leaf.path)) == "out"):
        allowed = _RANKS["query"]
    elif of == "dense" and wide:
        allowed = (2, 3)
    else:
        allowed = _RANKS.get(of)
    if allowed is None:
        return 0.5 if without is not None and len(axes) == 1 else 0.0
    # An axis of size 1 may be there or not: a batch norm of shape (1, 1, 1, C) is a vector.
    ranks = {len(axes), sum(leaf.shape[a] > 1 for a in axes)} if of != "conv" else {len(axes)}
    if of == "dense" and len(axes) in (4, 5) and not wide and naming.own(leaf.path) in naming.WEIGHTS:
        return 0.5 * (len(axes) - 3)  # a convolution whose name does not say so
    return min(
        2.0 * (low - rank) if rank < low else max(rank - high, 0.0) for rank in ranks for low, high in [_span(allowed)]
    )


def _span(allowed: Sequence[int]) -> tuple[int, int]:
    return min(allowed), max(allowed)


def _positions(leaves: Sequence[Leaf]) -> Iterable[tuple[int, int]]:
    """(position, size) of the axes that all leaves share; the last axis is position -1."""
    first = leaves[0]
    if any(not x.shape for x in leaves):
        return
    for position in [*range(len(first.shape)), -1]:
        size = first.shape[position]
        if size > 1 and all(
            len(x.shape) > max(position, 0)
            and x.shape[position] == size
            and (position % len(x.shape) in x.axes if x.meanings is None else position % len(x.shape) in x.stack)
            for x in leaves
        ):
            yield position, size


def _best(leaves: Sequence[Leaf], module: str, widths: set[int]) -> tuple[int, float] | None:
    """The position of the axis that explains the surplus of these leaves, and by how much."""
    undecided = [x for x in leaves if x.meanings is None]
    layers = len({naming.layer(x.path) for x in leaves})
    single = layers == 1
    if single and not naming.stacks(module) and any(x.kind == "einsum" or naming.is_query(x.path) for x in leaves):
        return None  # its bias has several axes of its own
    depth = min(naming.lifts(x.path) for x in leaves)
    lifted = depth > len(leaves[0].stack)
    found = []
    for position, size in _positions(leaves):
        if position < 0 and layers < 3:
            continue  # a bias shares the last axis of its kernel anyway
        gain = 10.0 if lifted and position == leaves[0].axes[0] else 0.0
        if not gain and any(
            len(x.axes) <= min(_RANKS[x.kind])
            for x in undecided
            if x.kind in ("table", "head", "dense", "lora", "conv")
        ):
            continue  # a weight would be left with too few axes
        if not gain and any(len(x.axes) == 1 and (x.kind == "norm" or naming.of_norm(x.path)) for x in undecided):
            continue  # and so would a normalization
        for x in undecided:
            # What a name says further down is not explained here.
            if naming.lifts(x.path) <= depth:
                gain += _misfit(x) - _misfit(x, position % len(x.shape))
        named = naming.stacks(module) and gain >= 0 and position == 0
        if gain > 0 and (len(undecided) > 1 or named or gain > 5):
            found.append((gain, size not in widths, -size, position >= 0, -position, position))
    if not found:
        return None
    top = max(found)
    return top[-1], top[0]


def _modules(leaves: Sequence[Leaf]) -> dict[tuple[str, ...], list[Leaf]]:
    """The leaves below every module, from the root down."""
    out: dict[tuple[str, ...], list[Leaf]] = {(): list(leaves)}
    for x in leaves:
        pieces = x.path.split("/")
        # A leaf whose own name says that it is stacked is a module by itself.
        for i in range(1, len(pieces) + naming.lifted(pieces[-1])):
            out.setdefault(tuple(pieces[:i]), []).append(x)
    return dict(sorted(out.items(), key=lambda item: len(item[0])))


def find_stacks(leaves: Sequence[Leaf], widths: set[int]) -> None:
    """Fills in `stack` of all leaves.

    Args:
      leaves: of one tree.
      widths: sizes that are features of embeddings.
    """
    accepted: list[tuple[tuple[str, ...], int, int]] = []
    for module, below in _modules(leaves).items():
        while below and any(x.meanings is None for x in below):
            found = _best(below, module[-1] if module else "", widths)
            if found is None:
                break
            position, gain = found
            for x in below:
                if x.meanings is None:
                    x.stack.append(position % len(x.shape))
            size = below[0].shape[position]
            accepted.append((module, position, size))
            kernels = {naming.layer(x.path) for x in below}
            if len(kernels) == 1 and gain < 5 and not any(naming.stacks(piece) for piece in module):
                for x in below:
                    x.doubts.append(f"axis {position % len(x.shape)} is taken as a stack of {size} by its shape alone")
    _side_by_side(leaves)
    _leftovers(leaves, accepted)


def _side_by_side(leaves: Sequence[Leaf]) -> None:
    """Bare weights of all layers beside weights of none: `{"embed": (V, D), "ln1": (L, D), "w_up": (L, D, F)}`.

    The scales of two normalizations in one module with a leading axis of one size say that what else in the module
    begins with it is stacked too, where it has enough axes.
    """
    modules: dict[str, list[Leaf]] = {}
    for x in leaves:
        if x.meanings is None and not x.stack and x.shape and x.shape[0] > 1:
            modules.setdefault(x.path.rpartition("/")[0], []).append(x)
    for beside in modules.values():
        surplus = [x.shape[0] for x in beside if len(x.shape) == 2 and naming.of_scale(x.path)]
        sizes = {size for size in surplus if surplus.count(size) > 1}
        for x in beside:
            wide = len(x.shape) > (1 if x.kind in ("vector", "norm") or naming.of_scale(x.path) else 2)
            if len(sizes) == 1 and x.shape[0] in sizes and wide and _misfit(x, 0) <= _misfit(x):
                x.stack.append(0)


def _leftovers(leaves: Sequence[Leaf], accepted: Sequence[tuple[tuple[str, ...], int, int]]) -> None:
    """Leaves with a surplus of their own, where relatives have a stack of that size at that position."""
    for x in leaves:
        if x.meanings is not None or _misfit(x) < 1 or x.kind not in ("vector", "norm"):
            continue
        pieces = x.path.split("/")

        def common(module: tuple[str, ...], pieces: list[str] = pieces) -> int:
            return next((i for i, (a, b) in enumerate(zip(module, pieces, strict=False)) if a != b), len(module))

        fits = [
            (common(module), position)
            for module, position, size in accepted
            if len(x.shape) > max(position, 0)
            and x.shape[position] == size
            and position % len(x.shape) in x.axes
            and _misfit(x, position % len(x.shape)) < _misfit(x)
        ]
        if fits:
            x.stack.append(max(fits)[1] % len(x.shape))


def find_experts(leaves: Sequence[Leaf]) -> None:
    """Marks the axes that enumerate experts: those a name says, and leading ones that a router scores.

    Args:
      leaves: of one tree, with their stacks.
    """
    routers: dict[str, set[int]] = {}
    shapes = {(_module(x.path), x.shape) for x in leaves if not naming.of_router(x.path)}
    # A `gate` of the shape of the layer beside it is the gate of a gated MLP.
    scores = {x.path for x in leaves if naming.of_router(x.path) and (_module(x.path), x.shape) not in shapes}
    for x in leaves:
        if x.path in scores and x.kind in ("dense", "free", "vector") and 1 <= len(x.sizes) <= 2:
            parent = x.path.rpartition("/")[0]
            for module in {parent, parent.rpartition("/")[0]}:
                routers.setdefault(module, set()).add(x.sizes[-1])
    pairs: dict[tuple[str, int], set[str]] = {}
    for x in leaves:
        if x.kind == "dense" and len(x.sizes) == 3 and naming.own(x.path) not in naming.GENERIC:
            way = naming.direction(naming.label(x.path))
            pairs.setdefault((x.path.rpartition("/")[0], x.sizes[0]), set()).add("down" if way == "out" else way)
    for (parent, size), ways in pairs.items():
        if {"up", "down"} <= ways:  # bare weights that go up and down again, with a leading axis in common
            routers.setdefault(parent, set()).add(size)
    found: dict[tuple[str, int, int], bool] = {}
    for x in leaves:
        if x.meanings is not None or x.kind in ("table", "conv", "head"):
            continue
        if any(naming.lifted(piece) and piece.startswith("Vmap") for piece in x.path.split("/")) and x.kind != "vector":
            x.experts += x.stack[:1]
            continue
        inside = naming.of_expert(x.path) and x.path not in scores
        if x.stack and inside and x.kind != "free vector":
            own = [a for a in x.stack if _own_axis(x, a, leaves, found)]
            x.experts += own
        need = 3 if x.kind != "vector" else 2
        scored: set[int] = set()
        for i in range(1, len(x.path.split("/"))):
            scored |= routers.get("/".join(x.path.split("/")[:i]), set())
        if len(x.sizes) == need and ((x.sizes[0] in scored and x.path not in scores) or (inside and need == 3)):
            if naming.is_query(x.path) and not inside:
                continue
            x.experts.append(x.axes[0])
            x.stack.append(x.axes[0])


def _module(path: str) -> str:
    """The module that the layer of a leaf stands in: `mlp` of `mlp/gate/kernel`."""
    return path.rpartition("/")[0].rpartition("/")[0]


def _own_axis(x: Leaf, axis: int, leaves: Sequence[Leaf], found: dict[tuple[str, int, int], bool]) -> bool:
    """Whether a stack axis is one of the experts alone: leaves beside them do not have it."""
    pieces = x.path.split("/")
    at = next((i for i, piece in enumerate(pieces) if naming.of_expert(piece)), len(pieces))
    outside = "/".join(pieces[:at])
    key = outside, axis, x.shape[axis]
    if key not in found:
        near = [y for y in leaves if y.path.startswith(outside + "/") or not outside]
        alone = all(naming.of_expert(y.path) for y in near)
        found[key] = alone or any(axis not in y.stack or y.shape[axis] != x.shape[axis] for y in near)
    return found[key]
