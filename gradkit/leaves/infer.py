"""The layout of a whole tree, decided from all its names and shapes together.

    params --names, shapes, names of axes--> stacks --> roles, inputs, outputs --> Decision

In this order: what the user declares (`gk.leaves.layout`); the logical names of axes that the parameters carry; without
them the names of leaves and what siblings have in common. A decision depends on names and shapes alone, so it is the
same at `init` and `update`, and made once for each tree.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit.leaves import naming
from gradkit.leaves.axes import Axes
from gradkit.leaves.axis_names import meanings
from gradkit.leaves.fused import find_fused_axes, find_splits
from gradkit.leaves.meaning import meaning, read
from gradkit.leaves.paths import names, names_of_axes
from gradkit.leaves.stacks import Leaf, find_experts, find_stacks
from gradkit.types import PyTree


class Doubt(NamedTuple):
    """A leaf whose meaning is not certain: its name, what was assumed, and why that is a guess."""

    path: str
    axes: Axes
    reason: str


@dataclasses.dataclass(frozen=True, eq=True)
class Decision:
    """What the axes of every leaf of one tree mean; a layout, `(path, shape) -> Axes`.

    Attributes:
      entries: per leaf its name, shape and axes, in the order of the tree.
      ambiguous: the leaves for which the tree does not say it.
      layers: per leaf, in the same order, the stack axes that enumerate layers; the others enumerate experts, members
        of an ensemble, or fused weights.
    """

    entries: tuple[tuple[str, tuple[int, ...], Axes], ...]
    ambiguous: tuple[Doubt, ...] = ()
    layers: tuple[tuple[int, ...], ...] = ()

    @functools.cached_property
    def _known(self) -> dict[str, tuple[tuple[int, ...], Axes]]:
        return {path: (shape, axes) for path, shape, axes in self.entries}

    @functools.cached_property
    def layers_of(self) -> dict[str, tuple[int, ...]]:
        """`layers` by name."""
        return {path: axes for (path, _, _), axes in zip(self.entries, self.layers, strict=True)}

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.entries, self.ambiguous))

    def __hash__(self) -> int:
        return self._hash

    def find(self, path: str, shape: tuple[int, ...], *, exact: bool) -> Axes | None:
        """The axes of a leaf of the tree, or None: of this shape, or else of any that has as many axes."""
        known = self._known.get(path)
        if known is None and path.rpartition("/")[2] in ("0", "value"):
            known = self._known.get(path.rpartition("/")[0])
        if known is None or len(known[0]) != len(shape) or (exact and known[0] != tuple(shape)):
            return None
        return known[1]

    def __call__(self, path: str, shape: tuple[int, ...]) -> Axes:
        """The meaning of the axes of one leaf; of a leaf that is not in the tree, what it says by itself."""
        found = self.find(path, shape, exact=False)
        return alone(path, tuple(shape)) if found is None else found

    def covers(self, entries: Any) -> bool:
        """Whether all of these (name, shape) are leaves of the tree."""
        return all((known := self._known.get(path)) is not None and known[0] == shape for path, shape in entries)


def infer_layout(params: PyTree, axis_names: Any = None, *, table: Mapping[str, str] | None = None) -> Decision:
    """What the axes of every parameter mean, decided for the whole tree.

    Args:
      params: parameters, or `jax.ShapeDtypeStruct`s of them; bare, in Flax boxes, or in NNX Variables.
      axis_names: a tree like `params` of the names of the axes of every leaf (`("embed", "layers", "mlp")`), or None
        for a leaf without. Default None: the names that the parameters carry.
      table: names of axes of your own and what they mean: "stack", "expert", "fused", "width", "inner", "vocab",
        "position", "vector". They take precedence over `gk.leaves.AXIS_NAMES`.

    Returns:
      A decision, which is a layout; `ambiguous` lists the leaves that the tree does not settle.

    Raises:
      ValueError: `axis_names` of another structure; a meaning that does not exist.

    Example:
      >>> blocks = {"norm": {"scale": jnp.zeros((6, 8))}, "up": {"kernel": jnp.zeros((6, 8, 32))}}
      >>> decision = infer_layout({"blocks": blocks, "final_norm": {"scale": jnp.zeros(8)}})
      >>> decision("blocks/up/kernel", (6, 8, 32))
      Axes(role='matrix', stack=(0,), inputs=(1,), outputs=(2,), splits=())
      >>> infer_layout({"w": jnp.zeros((4, 3, 8))}, {"w": ("embed", "layers", "mlp")})("w", (4, 3, 8))
      Axes(role='matrix', stack=(1,), inputs=(0,), outputs=(2,), splits=())
    """
    if axis_names is None:
        return decide(_rows(params, names_of_axes(params), table))
    try:
        named = jax.tree.structure(params).flatten_up_to(axis_names)
    except ValueError as error:
        raise ValueError(
            "infer_layout: axis_names must be a tree like params with one tuple of names (or None) per leaf, "
            f"such as {{'kernel': ('embed', 'mlp')}}: {error}"
        ) from error
    return decide(_rows(params, named, table))


def lasting(tree: PyTree) -> Decision:
    """The decision for a tree from what both `init` and `update` can see: names and shapes, and the names of axes where
    they belong to the array; not those of Flax boxes and Variables, which trainers take off in between."""
    return decide(_rows(tree, names_of_axes(tree, lasting=True), None))


def _rows(tree: Any, named: Sequence[Any], table: Mapping[str, str] | None) -> tuple["Row", ...]:
    return tuple(
        (name, tuple(jnp.shape(x)), meanings(n, jnp.ndim(x), table))
        for name, x, n in zip(names(tree), jax.tree.leaves(tree), named, strict=True)
    )


Row = tuple[str, tuple[int, ...], tuple[str, ...] | None]


@functools.lru_cache(maxsize=1024)
def decide(rows: tuple[Row, ...]) -> Decision:
    """The decision for leaves of these names, shapes, and meanings of named axes."""
    leaves = [Leaf(path, shape, naming.kind(path), named) for path, shape, named in rows]
    for x in leaves:
        for a, said in enumerate(x.meanings or ()):
            if said in ("stack", "expert"):
                x.stack.append(a)
            if said == "expert":
                x.experts.append(a)
    _settle_letters(leaves)
    widths = {x.shape[-1] for x in leaves if x.kind == "table" and len(x.shape) == 2}
    find_stacks(leaves, widths)
    find_experts(leaves)
    find_fused_axes(leaves)
    tree = read(leaves)
    owns = {x.path: meaning(tree, x) for x in leaves}
    splits = find_splits(tree, owns)
    entries = tuple(
        (x.path, x.shape, Axes(owns[x.path][0], tuple(sorted(x.stack)), *owns[x.path][1:], splits.get(x.path, ())))
        for x in leaves
    )
    doubts = tuple(
        Doubt(path, axes, "; ".join(x.doubts)) for x, (path, _, axes) in zip(leaves, entries, strict=True) if x.doubts
    )
    layers = tuple(
        () if naming.of_ensemble(x.path) else tuple(a for a in sorted(x.stack) if a not in (*x.experts, *x.fused))
        for x in leaves
    )
    return Decision(entries, doubts, layers)


def _settle_letters(leaves: Sequence[Leaf]) -> None:
    """A leaf called `b` is a bias where a weight stands beside it; a matrix of that name is none."""
    weights = {x.path.rpartition("/")[0] for x in leaves if naming.own(x.path).startswith(("w", "k"))}
    for x in leaves:
        letter = naming.own(x.path).rstrip("0123456789") == "b"
        if x.kind == "vector" and letter and len(x.shape) > 1 and x.path.rpartition("/")[0] not in weights:
            x.kind = "free"


@functools.lru_cache(maxsize=65536)
def alone(path: str, shape: tuple[int, ...]) -> Axes:
    """What a leaf's name and shape say without the tree."""
    return decide(((path, shape, None),)).entries[0][2]
