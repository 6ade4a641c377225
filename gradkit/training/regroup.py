"""State that is kept in stacks of matrices, read for other stacks, or for state that is kept by parameter.

    written on 3 devices    a0 a1 | a2 b0 | b1 -       two rows each, the last of them padding
    wanted on 2             a0 a1 a2 | b0 b1 -
    wanted by parameter     a (3, ...)    b (2, ...)

Every row of a stack says which matrix it belongs to (`Owned.rows`), so it finds its place in stacks that another mesh
or other shardings have made; and where it stands when the state is kept by parameter (`Owned.addresses`), which the
side that has stacks knows of both. State that has the same form on both sides is not touched.
"""

import itertools
import math
import pathlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.engine.addresses import Address, View
from gradkit.engine.codecs import Code
from gradkit.engine.owned import Owned
from gradkit.training import storage
from gradkit.training.links import Leaf, Listing, listing


class Place(NamedTuple):
    """Where the rows of one weight stand when the state is kept by parameter: the name of the parameter, the number of
    the weight in it, the name of the leaf below that of the field (None where it has no such form), how rows are read
    off it, and whether a row must have the shape of a tensor of the parameter."""

    parameter: str
    part: int
    name: str | None
    view: View | None
    same_shape: bool


class Rows(NamedTuple):
    """The rows of a leaf in a stack: the name of the stack, the name of each row, empty for padding, and their
    places."""

    stack: str
    names: Sequence[str]
    places: Sequence[Place] = ()

    @property
    def field(self) -> str:
        """The name of the field that has the stack."""
        return self.stack.rpartition("/")[0]


class Source(NamedTuple):
    """What a leaf is made of: the leaves that are read, all of one field, and how it is made of them."""

    field: str
    needs: tuple[str, ...]
    make: Callable[[Mapping[str, np.ndarray]], np.ndarray]


Stacks = dict[str, Rows]
Sources = dict[str, Source]
# Per leaf that is kept by parameter, the leaves in stacks that have rows of it: their names, places and row numbers.
Pairs = dict[str, list[tuple[str, Place, list[int]]]]


def rows_of(state: Any) -> Stacks:
    """The rows of every leaf that is in a stack, by its name."""
    known, found = iter(listing(state).leaves), {}
    for node in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Owned)):
        if not isinstance(node, Owned):
            next(known)
            continue
        for i, array in enumerate(jax.tree.leaves(node.arrays, is_leaf=lambda node: isinstance(node, Code))):
            for suffix in array._fields if isinstance(array, Code) else ("",):
                name = next(known).name
                if node.rows:
                    places = tuple(_place(address, i, suffix) for address in node.addresses)
                    found[name] = Rows(name.rpartition("/arrays")[0], node.rows, places)
    return found


def from_note(note: Mapping[str, Any]) -> Stacks:
    """What `rows_of` has found, read back from JSON."""

    def place(parameter: str, part: int, name: str | None, view: Any, same_shape: bool) -> Place:
        return Place(parameter, part, name, None if view is None else View(*view), same_shape)

    return {
        name: Rows(stack, rows, [place(*p) for row in rest for p in row]) for name, (stack, rows, *rest) in note.items()
    }


def _place(address: Address, i: int, suffix: str) -> Place:
    """The place of the rows of one array, or of one part of its code."""
    view, name = address.view, "/".join(filter(None, (address.names[i], suffix)))
    if view is None or suffix in ("", "value"):
        # By parameter a scalar has no code, in a stack it has one.
        scalar = view is not None and not any(view.sides)
        return Place(address.leaf, address.part, address.names[i] if scalar else name, view, False)
    # Codes share a scale along the last axis of an array: rows have the same where that is the parameter's.
    axes = [*itertools.chain(*view.sides)]
    alike = axes == sorted(axes) and all(len(side) == 1 for side in view.sides)
    alike = alike and view.part is None and not view.transposed
    view = view._replace(sides=view.sides[:-1]) if suffix == "diagonal" else view
    return Place(address.leaf, address.part, name if alike else None, view, True)


def regrouped(saved: Listing, there: Stacks, wanted: Listing, here: Stacks) -> tuple[Listing, Sources]:
    """What a checkpoint would list had it been written in the form in which the run goes on, and what the leaves are
    made of that have another form there."""
    sources: Sources = {}
    gone: set[str] = set()
    leaves = [{leaf.name: leaf for leaf in which.leaves} for which in (saved, wanted)]
    old, new = _by_array(there), _by_array(here)
    for array in old.keys() & new.keys():
        names = [{name: tuple(rows.names) for name, rows in side[array].items()} for side in (old, new)]
        if names[0] != names[1] and (made := _dealt_anew(old[array], new[array], *leaves)):
            gone |= old[array].keys()
            sources |= made
    old, new = _by_field(there), _by_field(here)
    for field in old.keys() - new.keys():
        below = [leaf for leaf in wanted.leaves if _is_below(leaf.name, field)]
        pairs = _paired(field, old[field], leaves[0], below)
        if pairs is not None:
            gone |= old[field].keys()
            sources |= {leaf.name: _collected(field, leaf, pairs.get(leaf.name, [])) for leaf in below}
    for field in new.keys() - old.keys():
        below = [leaf for leaf in saved.leaves if _is_below(leaf.name, field)]
        pairs = _paired(field, new[field], leaves[1], below)
        if pairs is not None:
            gone |= {leaf.name for leaf in below}
            sources |= {name: _dealt(field, leaves[1][name], rows, pairs) for name, rows in new[field].items()}
    old_stacks = {there[name].stack for name in gone if name in there}
    new_stacks = {here[name].stack for name in sources if name in here}
    links = [link for link in saved.links if not _inside(link, old_stacks)]
    links += [link for link in wanted.links if _inside(link, new_stacks)]
    kept = [leaf for leaf in saved.leaves if leaf.name not in gone]
    listed = (*kept, *(leaf for leaf in wanted.leaves if leaf.name in sources))
    return Listing(wanted.links if set(links) == set(wanted.links) else tuple(links), listed), sources


def _inside(link: str, stacks: set[str]) -> bool:
    """Whether a link is a part of one of these stacks."""
    return any(link.startswith(f"{stack}/") for stack in stacks)


def _is_below(name: str, field: str) -> bool:
    """Whether a leaf is a field, or in one."""
    return name == field or name.startswith(f"{field}/")


def _by_array(stacks: Stacks) -> dict[str, Stacks]:
    """What is the same array of all stacks together."""
    found: dict[str, Stacks] = defaultdict(dict)
    for name, rows in stacks.items():
        found[f"{rows.field}/*{name.removeprefix(rows.stack)}"][name] = rows
    return found


def _by_field(stacks: Stacks) -> dict[str, Stacks]:
    """What is the same field of all stacks together."""
    found: dict[str, Stacks] = defaultdict(dict)
    for name, rows in stacks.items():
        found[rows.field][name] = rows
    return found


def _dealt_anew(old: Stacks, new: Stacks, saved: Mapping[str, Leaf], wanted: Mapping[str, Leaf]) -> Sources | None:
    """The leaves of new stacks, made of the rows of old ones; None where they are not rows of the same matrices."""

    def kind(leaf: Leaf, rows: Rows) -> Any:
        """How many rows a matrix has, and of what kind."""
        return leaf.shape[0] // len(rows.names), leaf.shape[1:], leaf.dtype

    at = {row: (name, i) for name, rows in old.items() for i, row in enumerate(rows.names) if row}
    bound = {row: name for name, rows in new.items() for row in rows.names if row}
    if at.keys() != bound.keys():
        return None
    if any(kind(saved[at[row][0]], old[at[row][0]]) != kind(wanted[bound[row]], new[bound[row]]) for row in at):
        return None

    def source(leaf: Leaf, rows: Rows) -> Source:
        entries = [at.get(row) for row in rows.names]
        k = leaf.shape[0] // len(entries)  # the blocks of a matrix, which stay together

        def make(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
            given = [None if e is None else arrays[e[0]][e[1] * k : (e[1] + 1) * k] for e in entries]
            return _stack(leaf, given)

        return Source(rows.field, tuple(dict.fromkeys(e[0] for e in entries if e)), make)

    return {name: source(wanted[name], rows) for name, rows in new.items()}


def _stack(leaf: Leaf, rows: Sequence[np.ndarray | None]) -> np.ndarray:
    """A leaf in a stack, of what belongs to each of its matrices. None is padding: a matrix of zeros with the state of
    any other; what is counted is counted of none."""
    array = np.zeros((len(rows), leaf.shape[0] // len(rows), *leaf.shape[1:]), jnp.dtype(leaf.dtype))
    real = [(i, row) for i, row in enumerate(rows) if row is not None]
    for i, row in real:
        array[i] = row
    if real and jnp.issubdtype(array.dtype, jnp.inexact):
        array[[i for i, row in enumerate(rows) if row is None]] = real[0][1]
    return array.reshape(leaf.shape)


def _paired(field: str, stacks: Stacks, leaves: Mapping[str, Leaf], below: Sequence[Leaf]) -> Pairs | None:
    """Which leaves in stacks have the rows of which leaves that are kept by parameter; None where they do not fit.

    Args:
      field: the name of the field.
      stacks: its leaves in stacks.
      leaves: the leaves of the side that has the stacks.
      below: the leaves of the field on the other side.
    """
    pairs: Pairs = {}
    by_name = {leaf.name: leaf for leaf in below}
    for name, rows in stacks.items():
        index = {row: i for i, row in enumerate(rows.names)}
        if leaves[name].shape[:1] != (len(rows.names),) or not rows.places:
            return None
        for place in rows.places:
            if place.name is None:
                return None
            other = _found(f"{field}/{place.name}" if place.name else field, by_name)
            own: list[int] = []
            while (row := f"{place.parameter}[{place.part},{len(own)}]") in index:
                own.append(index[row])
            if other is None or not _fits(leaves[name], len(own), place, other):
                return None
            pairs.setdefault(other.name, []).append((name, place, own))
    # A leaf without entries has no matrices.
    return pairs if all(leaf.name in pairs or 0 in leaf.shape for leaf in below) else None


def _found(name: str, leaves: Mapping[str, Leaf]) -> Leaf | None:
    """The leaf of this name, or the only one below it: the array in the box of a parameter."""
    if name in leaves:
        return leaves[name]
    inside = [leaf for other, leaf in leaves.items() if other.startswith(f"{name}/")]
    return inside[0] if len(inside) == 1 else None


def _fits(stacked: Leaf, count: int, place: Place, other: Leaf) -> bool:
    """Whether a leaf that is kept by parameter has so many rows of the kind of those in a stack."""
    if stacked.dtype != other.dtype and other.shape:
        return False
    if not place.name:
        return other.shape == () and len(stacked.shape) == 1
    size = math.prod(stacked.shape[1:])
    if place.view is None:
        lead = len(other.shape) - len(stacked.shape) + 1
        return lead >= 0 and other.shape[lead:] == stacked.shape[1:] and math.prod(other.shape[:lead]) == count
    sides = [*itertools.chain(*place.view.sides)]
    if any(axis >= len(other.shape) for axis in sides):
        return False
    batch, lengths = _lengths(other.shape, place.view)
    if place.same_shape and tuple(lengths) != stacked.shape[1:]:
        return False
    start, stop = place.view.part or (0, lengths[-1])
    return batch == count and stop <= lengths[-1] and math.prod(lengths[:-1]) * (stop - start) == size


def _lengths(shape: Sequence[int], view: View) -> tuple[int, list[int]]:
    """How many tensors a parameter has, and the lengths of their axes with all fused weights."""
    sides = [*itertools.chain(*view.sides)]
    batch = math.prod(n for axis, n in enumerate(shape) if axis not in sides)
    return batch, [math.prod(shape[axis] for axis in side) for side in view.sides]


def _tensors(x: np.ndarray, place: Place) -> np.ndarray:
    """The tensors of a weight: a view of an array that is kept by parameter, wherever NumPy can make one."""
    view = place.view
    if view is None:
        return x
    batch, lengths = _lengths(x.shape, view)
    y = x.transpose(_order(x.ndim, view)).reshape(batch, *lengths)
    y = y if view.part is None else y[..., slice(*view.part)]
    return y.swapaxes(1, 2) if view.transposed else y


def _order(rank: int, view: View) -> list[int]:
    """The axes of a parameter, those that enumerate its tensors first."""
    sides = [*itertools.chain(*view.sides)]
    return [*(axis for axis in range(rank) if axis not in sides), *sides]


def _collected(field: str, leaf: Leaf, pairs: Sequence[tuple[str, Place, list[int]]]) -> Source:
    """A leaf that is kept by parameter, of the rows of stacks."""

    def make(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        out = np.zeros(leaf.shape, jnp.dtype(leaf.dtype))
        if pairs and not pairs[0][1].name:
            return np.sum(np.concatenate([arrays[name][rows] for name, _, rows in pairs]), dtype=out.dtype)[...]
        for name, place, rows in pairs:
            given = arrays[name][rows]
            if place.view is None:
                out = given.reshape(leaf.shape)
            else:
                order = _order(out.ndim, place.view)
                batch, lengths = _lengths(out.shape, place.view)
                both = out.transpose(order).reshape(batch, *lengths)
                part = both if place.view.part is None else both[..., slice(*place.view.part)]
                part = part.swapaxes(1, 2) if place.view.transposed else part
                part[...] = given.reshape(part.shape)
                out = both.reshape([out.shape[a] for a in order]).transpose(np.argsort(order))
        return out

    return Source(field, tuple(dict.fromkeys(name for name, *_ in pairs)), make)


def _dealt(field: str, leaf: Leaf, rows: Rows, pairs: Pairs) -> Source:
    """A leaf in a stack, of leaves that are kept by parameter."""
    given = [
        (other, place, own) for other, entries in pairs.items() for name, place, own in entries if name == leaf.name
    ]

    def make(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        out: list[Any] = [None] * len(rows.names)
        for other, place, own in given:
            if not place.name:
                continue
            tensors = _tensors(arrays[other], place).reshape(len(own), *leaf.shape[1:])
            for i, x in zip(own, tensors, strict=True):
                out[i] = x
        array = _stack(leaf, out)
        for other, entries in pairs.items():
            name, place, own = entries[0]
            if not place.name and name == leaf.name:  # one count of all matrices: it stands with the first
                array[own[0]] = arrays[other]
        return array

    return Source(field, tuple(dict.fromkeys(other for other, *_ in given)), make)


def read(
    folder: pathlib.Path, sources: Sources, saved: Listing, places: dict[str, Any], digests: dict[str, str]
) -> dict[str, Any]:
    """The leaves of `sources`, each bound to where the leaf beside it is; read on the host, field by field."""
    leaves: dict[str, Leaf] = {leaf.name: leaf for leaf in saved.leaves}
    out = {}
    for field in dict.fromkeys(sources[name].field for name in places):
        own = {name: x for name, x in places.items() if sources[name].field == field}
        needed = dict.fromkeys(needs for name in own for needs in sources[name].needs)
        shapes = {name: jax.ShapeDtypeStruct(leaves[name].shape, jnp.dtype(leaves[name].dtype)) for name in needed}
        arrays = storage.read(folder, shapes, digests)
        for name, x in own.items():
            array, place = sources[name].make(arrays), storage.sharding(x)
            made = None if place is None else jax.make_array_from_callback(x.shape, place, lambda i, a=array: a[i])
            out[name] = array if made is None else made
    return out
