"""What the leaves of a run are called on disk: by the link of the chain they belong to, and by field.

    opt_state/1/ScaleByAdamState/mu/dense/kernel
    `----------- link ---------' `---- field ---'

A link is a named tuple (or dataclass) whose class is called `...State`, as those of optax and gradkit are; its
name is its place and its class. What is outside of links (parameters, step, key) counts to the field of the run
that holds it. Stateless links have a name too, so a chain is told from one that has them elsewhere.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx


class Leaf(NamedTuple):
    """One array: the link it belongs to, its name in there, its shape and dtype."""

    link: str
    field: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def name(self) -> str:
        return "/".join(piece for piece in (self.link, self.field) if piece)

    @property
    def kind(self) -> tuple[tuple[int, ...], str]:
        return self.shape, self.dtype

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Listing(NamedTuple):
    """All links (and fields of the run) and all leaves, each in the order of the tree."""

    links: tuple[str, ...]
    leaves: tuple[Leaf, ...]


def _children(node: Any) -> list[tuple[str, Any]] | None:
    """(piece of a name, child) one level down; None for a leaf."""
    pairs = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
    if any(not path for path, _ in pairs):
        return None
    return [("/".join(jax.tree_util.keystr((key,), simple=True) for key in path), child) for path, child in pairs]


def _is_link(node: Any) -> bool:
    record = hasattr(node, "_fields") or dataclasses.is_dataclass(node)
    return record and type(node).__name__.endswith("State")


def listing(state: Any) -> Listing:
    """The links and leaves of a run, or of the shapes of one.

    Args:
      state: any tree, such as `Run` or `TrainState`; leaves are arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      The listing; its leaves are in the order of `jax.tree.leaves(state)`.

    Raises:
      ValueError: two leaves of one name.
      TypeError: a leaf that is no array; or no tree but an array.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> params = {"w": jnp.zeros(2)}
      >>> state = {"params": params, "opt_state": optax.adam(0.1).init(params)}
      >>> for leaf in listing(state).leaves:
      ...     print(leaf.name, leaf)
      opt_state/0/ScaleByAdamState/count int32[]
      opt_state/0/ScaleByAdamState/mu/w float32[2]
      opt_state/0/ScaleByAdamState/nu/w float32[2]
      params/w float32[2]
    """
    links: list[str] = []
    leaves: list[Leaf] = []

    def walk(node: Any, link: tuple[str, ...], field: tuple[str, ...]) -> None:
        if _is_link(node):
            link, field = (*link, *field, type(node).__name__), ()
            links.append("/".join(link))
        children = _children(node)
        if children is None:
            name = "/".join((*link, *field))
            if not hasattr(node, "shape") or not hasattr(node, "dtype"):
                raise TypeError(f"a checkpoint holds arrays only; {name!r} is {node!r}")
            leaves.append(Leaf("/".join(link), "/".join(field), tuple(node.shape), str(node.dtype)))
            return
        for piece, child in children:
            # A Variable of Flax NNX counts as its one leaf, as in `gk.leaves`.
            walk(child, link, field if isinstance(node, nnx.Variable) else (*field, piece))

    # The whole may be called `TrainState`: it is no link.
    fields = _children(state)
    if fields is None:
        raise TypeError(f"a run is a tree with fields, such as params and opt_state, got {state!r}")
    for piece, child in fields:
        if child is None:
            continue
        links.append(piece)
        walk(child, (piece,), ())
    seen = set()
    for leaf in leaves:
        if leaf.name in seen:
            raise ValueError(f"two leaves are called {leaf.name!r}")
        seen.add(leaf.name)
    return Listing(tuple(links), tuple(leaves))


def _class(link: str) -> str:
    return link.rsplit("/", 1)[-1]


def _unnumbered(link: str) -> str:
    """The link's name without its position in chains; labels of a partition and names of a chain stay."""
    return "/".join(piece for piece in link.split("/") if not piece.isdigit())


def pair_links(saved: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Which wanted link goes on from which saved one: by class and order, whatever the positions.

    Example:
      >>> pair_links(["0/AdamState", "1/EmptyState"], ["0/EmptyState", "1/AdamState", "2/EmptyState"])
      {'1/AdamState': '0/AdamState', '2/EmptyState': '1/EmptyState'}
    """
    pairs: dict[str, str] = {}
    a, b = [_unnumbered(link) for link in saved], [_unnumbered(link) for link in wanted]
    for block in difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks():
        pairs.update(zip(wanted[block.b :][: block.size], saved[block.a :][: block.size], strict=True))
    for token in (_unnumbered, _class):
        for link in wanted:
            if link not in pairs:
                alike = [old for old in saved if old not in pairs.values() and token(old) == token(link)]
                pairs.update(zip([link], alike, strict=False))
    return {link: pairs[link] for link in wanted if link in pairs}


def differences(saved: Listing, wanted: Listing) -> list[str]:
    """What tells a saved run from the one that would go on from it, link by link.

    Args:
      saved: the listing of the checkpoint.
      wanted: the listing of the run.

    Returns:
      One line per link (or field of the run) that differs; empty where the two agree.

    Example:
      >>> old = Listing((), (Leaf("params", "w", (2,), "float32"),))
      >>> new = Listing((), (Leaf("params", "w", (3,), "float32"), Leaf("params", "b", (), "float32")))
      >>> differences(old, new)
      ['params: w is float32[2] in the checkpoint and float32[3] here, b is here only']
    """
    rows = [_fields(saved), _fields(wanted)]
    links = [list(dict.fromkeys((*which.links, *row))) for which, row in zip((saved, wanted), rows, strict=True)]
    pairs = pair_links(*links)
    lines = [f"{link} is in the checkpoint only" for link in links[0] if link not in pairs.values()]
    lines += [f"{link} is here only" for link in links[1] if link not in pairs]
    moved = [f"{link} is {old} in the checkpoint" for link, old in pairs.items() if link != old]
    for link, old in pairs.items():
        before, here = rows[0].get(old, {}), rows[1].get(link, {})
        said = [
            f"{field or 'it'} {_said(before.get(field), here.get(field))}"
            for field in dict.fromkeys((*before, *here))
            if field not in before or field not in here or before[field].kind != here[field].kind
        ]
        if said:
            lines.append(f"{link}: {', '.join(said[:3])}{f', and {len(said) - 3} more' if len(said) > 3 else ''}")
    # What stands behind a new link has moved, too: that goes without saying.
    return lines or moved


def _fields(which: Listing) -> dict[str, dict[str, Leaf]]:
    rows: dict[str, dict[str, Leaf]] = {}
    for leaf in which.leaves:
        rows.setdefault(leaf.link, {})[leaf.field] = leaf
    return rows


def _said(before: Leaf | None, here: Leaf | None) -> str:
    if before is None:
        return "is here only"
    if here is None:
        return "is in the checkpoint only"
    return f"is {before} in the checkpoint and {here} here"


def carried(saved: Listing, wanted: Listing) -> dict[str, str]:
    """Which wanted leaf a transplant takes from which saved one, names to names.

    A leaf goes to a leaf of the same field, shape and dtype, in a link of the same class. Links are paired in
    order. A link that was split or merged (parameters moved from one label of a partition to another) takes what
    its partner lacks from the other links of its class; then a counter that is common to a link is copied with it.

    Args:
      saved: the listing of the checkpoint.
      wanted: the listing of the run.

    Returns:
      Wanted name -> saved name; wanted leaves that nothing matches are not in it.
    """
    old, new = _fields(saved), _fields(wanted)
    pairs = pair_links(list(old), list(new))
    taken: dict[str, str] = {}

    def take(link: str, donor: str, again: bool) -> bool:
        """Takes what matches; `again`: also what another link has taken."""
        found = [
            (leaf.name, old[donor][field].name)
            for field, leaf in new[link].items()
            if leaf.name not in taken and field in old[donor] and old[donor][field].kind == leaf.kind
        ]
        found = [(name, source) for name, source in found if again or source not in taken.values()]
        taken.update(found)
        return bool(found)

    for link, donor in pairs.items():
        take(link, donor, False)
    for link in new:
        for donor in old:
            if _class(donor) == _class(link) and take(link, donor, False):
                take(link, donor, True)
    return taken
