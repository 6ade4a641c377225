"""State that lies stacked with its owners, read for other owners.

    written on 3 devices    a0 a1 | a2 b0 | b1 -       two rows each, the last of them padding
    wanted on 2             a0 a1 a2 | b0 b1 -

Every row of a stack says which matrix it belongs to (`Owned.rows`), so it finds its place in stacks that another mesh,
other shardings, or no mesh at all have made. What lies the same way on both sides is not touched.
"""

import pathlib
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.engine.owned import Owned
from gradkit.training import storage
from gradkit.training.links import Leaf, Listing, listing

Rows = dict[str, list[Any]]  # name of a leaf -> [name of its stack, what its rows belong to]
Sources = dict[str, list[tuple[str, int] | None]]  # name of a leaf -> per row, where it is read from


def rows_of(state: Any) -> Rows:
    """The rows of every leaf that lies with owners."""

    def owned(node: Any) -> bool:
        return isinstance(node, Owned)

    known, found = iter(listing(state).leaves), {}
    for node in jax.tree.leaves(state, is_leaf=owned):
        for _ in jax.tree.leaves(node):
            name = next(known).name
            if owned(node) and node.rows:
                found[name] = [name.rpartition("/arrays")[0], list(node.rows)]
    return found


def regrouped(saved: Listing, there: Rows, wanted: Listing, here: Rows) -> tuple[Listing, Sources]:
    """What a checkpoint would list had it been written where the run goes on, and where its rows are read from."""
    kinds = [_kinds(saved, there), _kinds(wanted, here)]
    sources: Sources = {}
    gone: set[str] = set()
    old, new = _by_family(there), _by_family(here)
    for family in old.keys() & new.keys():
        if old[family] == new[family]:
            continue
        at = {row: (name, i) for name, rows in old[family].items() for i, row in enumerate(rows) if row}
        bound = {row: name for name, rows in new[family].items() for row in rows if row}
        if at.keys() == bound.keys() and all(kinds[0][at[row][0]] == kinds[1][bound[row]] for row in at):
            gone |= old[family].keys()
            sources |= {name: [at.get(row) for row in rows] for name, rows in new[family].items()}
    old_stacks, new_stacks = {there[name][0] for name in gone}, {here[name][0] for name in sources}
    links = [link for link in saved.links if not _inside(link, old_stacks)]
    links += [link for link in wanted.links if _inside(link, new_stacks)]
    kept = [leaf for leaf in saved.leaves if leaf.name not in gone]
    leaves = (*kept, *(leaf for leaf in wanted.leaves if leaf.name in sources))
    return Listing(wanted.links if set(links) == set(wanted.links) else tuple(links), leaves), sources


def _kinds(which: Listing, rows: Rows) -> dict[str, Any]:
    """How many rows a matrix has, and of what kind."""
    own = [leaf for leaf in which.leaves if leaf.name in rows]
    return {x.name: (x.shape[0] // len(rows[x.name][1]), x.shape[1:], x.dtype) for x in own}


def _inside(link: str, stacks: set[str]) -> bool:
    """Whether a link is a part of one of these stacks."""
    return any(link.startswith(f"{stack}/") for stack in stacks)


def _by_family(rows: Rows) -> dict[str, dict[str, list[str]]]:
    """What is the same array of all stacks together: the rows of each."""
    found: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for name, (stack, own) in rows.items():
        found[f"{stack.rpartition('/')[0]}/*{name.removeprefix(stack)}"][name] = own
    return found


def read(
    folder: pathlib.Path, sources: Sources, saved: Listing, places: dict[str, Any], digests: dict[str, str]
) -> dict[str, Any]:
    """The leaves of `sources`, each bound to where the leaf beside it is. The stacks are read whole, on the host."""
    leaves: dict[str, Leaf] = {leaf.name: leaf for leaf in saved.leaves}
    needed = {entry[0] for name in places for entry in sources[name] if entry}
    shapes = {name: jax.ShapeDtypeStruct(leaves[name].shape, jnp.dtype(leaves[name].dtype)) for name in needed}
    stacks = storage.read(folder, shapes, digests)
    out = {}
    for name, x in places.items():
        k = x.shape[0] // len(sources[name])  # the blocks of a matrix, which stay together
        array = np.zeros((len(sources[name]), k, *x.shape[1:]), x.dtype)
        real = [(i, stacks[e[0]][e[1] * k : (e[1] + 1) * k]) for i, e in enumerate(sources[name]) if e]
        for i, row in real:
            array[i] = row
        if real and jnp.issubdtype(x.dtype, jnp.inexact):
            # Padding is a matrix of zeros with the state of any other; what is counted is counted of none.
            padding = [i for i, entry in enumerate(sources[name]) if not entry]
            array[padding] = real[0][1]
        array, place = array.reshape(x.shape), storage.sharding(x)
        made = None if place is None else jax.make_array_from_callback(x.shape, place, lambda i, a=array: a[i])
        out[name] = array if made is None else made
    return out
