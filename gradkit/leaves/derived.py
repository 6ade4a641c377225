"""Containers of state: what has another shape than its parameter goes into a box of the same kind, with its own names.

    a parameter (layers, embed, mlp)          its moment            the parameter's own box
                                              one norm per layer    (layers, None, None)
                                              a (mlp, mlp) matrix   (layers, mlp, embed)

Every axis of the new array has sources, axes of the parameter, the best first: it takes the name, or the mesh axes, of
the first that it can be sharded like.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from flax.core import meta
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from gradkit.leaves.boxes import axes_of_box, is_box
from gradkit.leaves.paths import names
from gradkit.leaves.structures import of_structure
from gradkit.types import PyTree

Sources = Sequence[tuple[int, ...]]
# No mesh is known where names are given. An axis is taken to be sharded over at most this many devices, a power of two.
ASSUMED_DEVICES = 16
# What an NNX Variable may say of the axes of its array, and of the state that belongs to it.
OF_VARIABLES = ("out_sharding", "optimizer_sharding")


@partial(jax.tree_util.register_dataclass, data_fields=["value"], meta_fields=["sharding", "axes"])
@dataclasses.dataclass(frozen=True)
class Placed:
    """A box that carries the sharding of its parameter, and gives that of what is derived from it; with the names of
    the axes that another box has."""

    value: Any
    sharding: NamedSharding
    axes: Any = None


def flatten(tree: PyTree) -> tuple[list[Any], Any]:
    """The nodes of a tree, a box being one node, and its structure above them."""
    return jax.tree.flatten(tree, is_leaf=is_box)


def node_names(tree: PyTree) -> list[str]:
    """The names of the nodes, also of boxes around nothing."""
    nodes, structure = flatten(tree)
    return names(structure.unflatten(range(len(nodes))))


def unboxed(tree: PyTree) -> Any:
    """The tree with the array of every box in place of the box.

    >>> unboxed({"a": meta.Partitioned(1.0, names=("embed",)), "b": 2.0})
    {'a': 1.0, 'b': 2.0}
    """
    return jax.tree.map(lambda node: _content(node) if is_box(node) else node, tree, is_leaf=is_box)


def without_empty(tree: PyTree) -> Any:
    """The tree with what is in a box, such as an `optax.MaskedNode`, in place of every box without an array.

    >>> without_empty({"a": meta.Partitioned((), names=()), "b": 2.0})
    {'a': (), 'b': 2.0}
    """
    if not has_boxes(tree):
        return tree
    return jax.tree.map(lambda x: x if jax.tree.leaves(x) else _content(x), tree, is_leaf=is_box)


def _content(box: Any) -> Any:
    return jax.tree.leaves(box, is_leaf=lambda x: x is not box)[0]


@of_structure
def has_boxes(tree: PyTree) -> bool:
    """Whether there is a box in the tree."""
    return any(map(is_box, jax.tree.leaves(tree, is_leaf=is_box)))


def _atoms(entry: Any) -> tuple[Any, ...]:
    return entry if isinstance(entry, tuple) else () if entry is None else (entry,)


def _may(length: int, of: int) -> bool:
    """Whether what divides a length of a parameter's axis is taken to divide another length."""
    return length % of == 0 or (of % 2 == 0 and length & -length >= min(ASSUMED_DEVICES, of & -of))


def assign(
    entries: Sequence[Any],
    shape: Sequence[int],
    lengths: Sequence[int],
    sources: Sources,
    sizes: Mapping[Any, int] | None = None,
    spare: Mapping[Any, int] | None = None,
) -> tuple[Any, ...]:
    """The names of the axes of an array that is derived from a parameter.

    Args:
      entries: the names of the parameter's axes, None for an axis without; mesh axes, or logical ones.
      shape: of the parameter.
      lengths: of the axes of the new array.
      sources: for each of them, which axes of the parameter it may be sharded like.
      sizes: of the mesh axes, where the entries are mesh axes on a known mesh.
      spare: names that the parameter lacks, with the length of an axis that has the name elsewhere; for axes that have
        sources and get no name from them. Default None: none.

    >>> assign(("embed", "mlp"), (64, 176), (64, 64), ((0, 1), (1,)))
    ('embed', 'mlp')
    >>> assign(("embed", "mlp"), (64, 6), (6, 6), ((1, 0), (0,)))
    ('mlp', None)
    >>> assign(("x", "y", None), (8, 6, 16), (16, 16), ((2, 0, 1), (0, 1)), {"x": 2, "y": 2})
    ('x', 'y')
    >>> assign(("mlp",), (176,), (176, 176), ((0,), (0,)), spare={"embed": 64})
    ('mlp', 'embed')
    """
    given = [*entries, *[None] * (len(shape) - len(entries))]
    own = [name for entry in given for name in _atoms(entry)]
    rest = {name: length for name, length in (spare or {}).items() if name not in own}
    used: set[Any] = set()
    out: list[Any] = []
    for i, (length, possible) in enumerate(zip(lengths, sources, strict=True)):
        taken: list[Any] = []
        # An entry of the parameter, or a spare name; and the length that it is known to divide.
        entries_here = [(_atoms(given[a]), shape[a]) for a in possible] if length > 1 else []
        entries_here += [((name,), known) for name, known in rest.items()] if entries_here else []
        for atoms, known in entries_here:
            if sizes is None:
                new = list(atoms) if _may(length, known) and not used & {*atoms} else []
            else:
                new = []
                for atom in atoms:
                    ways = int(np.prod([sizes[b] for b in (*taken, *new, atom)]))
                    new += [atom] if atom not in used and length % ways == 0 else []
            used |= {*new}
            taken += new
            # What the last axis does not take is lost; of names without a known mesh it takes one.
            if taken and (sizes is None or i < len(lengths) - 1):
                break
        out.append(None if not taken else taken[0] if len(taken) == 1 else tuple(taken))
    return tuple(out)


class Companions:
    """The names of axes, or the mesh axes, of all parameters of a tree.

    A parameter that is sharded along one mesh axis, such as a bias, may have state that is larger than itself, such as
    a matrix for its only axis. Names that stand beside its own in another parameter shard that state further: they
    stand for other mesh axes, as no two axes of one parameter may be sharded along the same.

    Args:
      nodes: the parameters: arrays, or boxes with one.
      skip: per parameter the axes whose names are left out, such as those of layers in one leaf, which are not sharded
        as a rule.
    """

    def __init__(self, nodes: Sequence[Any], skip: Sequence[Sequence[int]]) -> None:
        self._known: dict[Any, list[tuple[set[Any], dict[Any, int]]]] = {}
        for node, passed in zip(nodes, skip, strict=True):
            shape = np.shape(jax.tree.leaves(node)[0])
            for given in _given_names(node):
                entries = tuple(getattr(given, "spec", given))
                found = {name: axis for axis, entry in enumerate(entries) for name in _atoms(entry)}
                lengths = {name: shape[axis] for name, axis in found.items() if axis not in passed}
                self._known.setdefault(_kind(given), []).append(({*found}, lengths))

    def of(self, given: Any) -> dict[Any, int]:
        """Names that may be used beside those that a parameter has, with the length of an axis that has the name."""
        own = {name for entry in getattr(given, "spec", given) for name in _atoms(entry)}
        beside = [lengths for names, lengths in self._known.get(_kind(given), []) if own <= names]
        return max(beside, key=len, default={})


def _kind(given: Any) -> Any:
    return given.mesh if isinstance(given, NamedSharding) else None


def _given_names(node: Any) -> list[Any]:
    """What a parameter says of its axes: shardings, specs, or names."""
    (own,) = jax.tree.leaves(node)
    here = getattr(own, "sharding", None)
    found: list[Any] = [here] if isinstance(own, jax.Array) and not isinstance(own, Tracer) else []
    if isinstance(node, Placed):
        found.append(node.sharding)
    elif isinstance(node, nnx.Variable):
        told = node.get_metadata()
        found += [told[key] for key in OF_VARIABLES if told.get(key)]
    elif isinstance(node, meta.AxisMetadata):
        found.append(axes_of_box(node) or ())
    return [given for given in found if isinstance(given, NamedSharding | PartitionSpec | tuple)]


def _ambient_sizes(entries: Sequence[Any]) -> Mapping[Any, int] | None:
    """The sizes of the mesh axes under `jax.set_mesh`, where all names are mesh axes."""
    mesh = jax.sharding.get_abstract_mesh()
    own = [name for entry in entries for name in _atoms(entry)]
    return mesh.shape if own and {*own} <= {*mesh.axis_names} else None


def derived(node: Any, x: Any, sources: Sources, companions: Companions | None = None) -> Any:
    """An array in a container like that of the parameter it is derived from.

    Args:
      node: the parameter: an array, or a box with one.
      x: the new array; of the parameter's shape or not.
      sources: for each axis of x, which axes of the parameter it may be sharded like, the best first.
      companions: of all parameters. Where x is not smaller than the parameter, it may be sharded like them, too.
        Default None.

    Returns:
      Of a Linen box or an NNX Variable, one of the same kind with the names of the axes of x. Of any other node, x
      itself. Where the parameter is a concrete sharded array, x is sharded too.

    >>> box = meta.Partitioned(np.zeros((5, 64, 4)), names=("layers", "embed", "heads"))
    >>> derived(box, np.zeros((5, 64, 64)), ((0,), (1,), (2,))).names
    ('layers', 'embed', 'heads')
    """
    (own,) = jax.tree.leaves(node)
    shape, lengths = np.shape(own), np.shape(x)

    def names_from(given: Any) -> Any:
        spec = getattr(given, "spec", given)
        sizes = given.mesh.shape if isinstance(given, NamedSharding) else _ambient_sizes(spec)
        large = math.prod(lengths) >= math.prod(shape)
        spare = companions.of(given) if companions is not None and large else {}
        spare = {name: length for name, length in spare.items() if sizes is None or name in sizes}
        out = assign(tuple(spec), shape, lengths, sources, sizes, spare)
        if isinstance(given, NamedSharding):
            return NamedSharding(given.mesh, PartitionSpec(*_short(out)), memory_kind=given.memory_kind)
        return PartitionSpec(*out) if isinstance(given, PartitionSpec) else out

    here = getattr(own, "sharding", None)
    if isinstance(own, jax.Array) and not isinstance(own, Tracer) and isinstance(here, NamedSharding):
        x = x if isinstance(x, Tracer) else jax.device_put(x, names_from(here))
    if isinstance(node, Placed):
        return Placed(x, names_from(node.sharding))
    if isinstance(node, nnx.Variable):
        told = dict(node.get_metadata())
        told |= {key: names_from(told[key]) for key in OF_VARIABLES if told.get(key)}
        return type(node).from_metadata(x, told)
    if isinstance(node, meta.AxisMetadata) and dataclasses.is_dataclass(node):
        fields = {field.name for field in dataclasses.fields(node)}
        if {"value", "names"} <= fields:
            box: Any = node
            return dataclasses.replace(box, value=x, names=names_from(axes_of_box(node) or ()))
    return x


def _short(entries: Sequence[Any]) -> list[Any]:
    out = list(entries)
    while out and out[-1] is None:
        out.pop()
    return out


def rename(state: Any, params: PyTree) -> Any:
    """State whose boxes are those of parameters, where arrays of another shape get boxes of their own.

    A box of the state belongs to the parameter whose name its own name ends with. An axis of the parameter's length has
    the parameter's name for it, a window of arrays of the parameter's shape has its names behind the new axes; what has
    neither is a plain array. A box around nothing, such as an `optax.MaskedNode`, goes.

    >>> box = meta.Partitioned(np.zeros((5, 64)), names=("layers", "embed"))
    >>> rename({"nu": {"w": box.replace(value=np.zeros((5, 1)))}}, {"w": box})["nu"]["w"].names
    ('layers', None)
    """
    nodes, structure = flatten(state)
    if not any(map(is_box, nodes)):
        return state
    of = dict(zip(node_names(params), flatten(params)[0], strict=True))

    def one(name: str, node: Any) -> Any:
        pieces = name.split("/")
        owner = next((of[tail] for i in range(len(pieces)) if (tail := "/".join(pieces[i:])) in of), of.get(""))
        if owner is None or not is_box(node):
            return node
        content = _content(node)
        if jax.tree_util.all_leaves([content]):
            return renamed(content, owner, node)
        # What codes a moment, or nothing.
        return jax.tree.map(lambda x: renamed(x, owner, None), content)

    def renamed(x: Any, owner: Any, box: Any) -> Any:
        (own,) = jax.tree.leaves(owner)
        shape, new = np.shape(own), np.shape(x)
        more = len(new) - len(shape)
        if shape == new and box is not None:
            return box
        if more > 0 and new[more:] == shape:
            return derived(owner, x, (*[()] * more, *((a,) for a in range(len(shape)))))
        if more == 0:
            return derived(owner, x, [(a,) if m == n else () for a, (m, n) in enumerate(zip(shape, new, strict=True))])
        return x

    return structure.unflatten([one(name, node) for name, node in zip(node_names(state), nodes, strict=True)])


def label_nodes(function: Callable[[str, Any], Any], tree: PyTree) -> Any:
    """A tree of what a function says of every node's name and array, in place of the node; a box is one node. A box
    around nothing stays as it is.

    >>> label_nodes(lambda name, x: f"{name}={x}", {"a": meta.Partitioned(1.0, names=("embed",)), "b": None})
    {'a': 'a=1.0', 'b': None}
    """
    nodes, structure = flatten(tree)
    inside = [*map(jax.tree.leaves, nodes)]
    rows = zip(node_names(tree), nodes, inside, strict=True)
    return structure.unflatten([function(name, own[0]) if own else node for name, node, own in rows])
