"""A state as its reader sees it: every node under the names of the links, groups, fields and leaves above it."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from gradkit.leaves.keeping import without_kept


class Node(NamedTuple):
    """One node of a state.

    Attributes:
      path: names from the outside in. A link has its own after its place in the chain: `("0", "scale_by_adam", "mu")`.
      groups: those of the names that are keys of dictionaries outside of it: groups of leaves, links of a named chain.
      link: the name of the link that it is, or that it belongs to; "" outside of all.
      value: the node.
    """

    path: tuple[str, ...]
    groups: tuple[str, ...]
    link: str
    value: Any

    @property
    def text(self) -> str:
        """The path in one word."""
        return "/".join(self.path)


def link_name(state: Any) -> str:
    """The name of the link whose state this is, from the name of its class.

    >>> import optax
    >>> link_name(optax.ScaleByAdamState(0, 0, 0))
    'scale_by_adam'
    """
    name = type(state).__name__.removesuffix("State")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def is_link(node: Any) -> bool:
    """Whether a node is the state of a link: a NamedTuple of this name, as optax has them."""
    return is_named(node) and type(node).__name__.endswith("State")


def is_named(node: Any) -> bool:
    """Whether a node is a NamedTuple."""
    return isinstance(node, tuple) and hasattr(node, "_fields")


def walk(state: Any) -> Iterator[Node]:
    """All nodes of a state, outermost first; boxes are opened as JAX opens them, and decisions of layouts left out."""
    return _walk(without_kept(state), (), (), "")


def _walk(node: Any, path: tuple[str, ...], groups: tuple[str, ...], link: str) -> Iterator[Node]:
    if is_link(node):
        link = link_name(node)
        path = (*path, link)
    yield Node(path, groups, link, node)
    if isinstance(node, Mapping):
        below = [(str(key), value, (*groups, str(key))) for key, value in node.items()]
    elif is_named(node):
        below = [(field, getattr(node, field), groups) for field in node._fields]
    else:
        level = jax.tree_util.default_registry.flatten_one_level(node) if not is_leaf(node) else None
        children = list(level[0]) if level else []
        below = [(str(i), child, groups) for i, child in enumerate(children)]
    for name, child, inside in below:
        yield from _walk(child, (*path, name), inside, link)


def is_leaf(node: Any) -> bool:
    """Whether JAX takes a node for an array, or for nothing."""
    return node is None or jax.tree_util.all_leaves([node])
