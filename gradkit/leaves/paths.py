"""Names of the leaves of a tree: `a/b/c`, the same at `init` and at `update`.

The pieces of a path are dictionary keys, attribute names and indices. A box (a Linen box, an NNX
`Variable`, a `NamedArray`) counts as one leaf, so a parameter has one name in the box and bare.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from gradkit.leaves.boxes import axes_of_box, is_box
from gradkit.leaves.structures import of_structure
from gradkit.types import PyTree


def _piece(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def names(tree: PyTree) -> list[str]:
    """The names of all leaves, in the order of `jax.tree.leaves`.

    Args:
      tree: any pytree; a box is one leaf.

    Returns:
      One name `a/b/c` per leaf; `None` and `optax.MaskedNode` are no leaves.

    Example:
      >>> names({"dense": {"kernel": 1, "bias": 2}, "layers": [3, 4]})
      ['dense/bias', 'dense/kernel', 'layers/0', 'layers/1']
    """
    return [*_names(tree)]


@of_structure
def _names(tree: Any) -> tuple[str, ...]:
    nodes = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_box)[0]
    return tuple("/".join(map(_piece, path)) for path, node in nodes for _ in jax.tree.leaves(node))


def masked_names(tree: PyTree) -> list[str]:
    """The names of the leaves that `optax.masked`, `optax.partition` or `groups` have taken out of a tree.

    Args:
      tree: any pytree.

    Returns:
      One name per `optax.MaskedNode`.

    Example:
      >>> masked_names({"bias": 1, "dense": {"kernel": optax.MaskedNode()}})
      ['dense/kernel']
    """

    def stops(node: Any) -> bool:
        return is_box(node) or isinstance(node, optax.MaskedNode)

    def taken(node: Any) -> bool:
        inside = jax.tree.leaves(node, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
        return any(isinstance(x, optax.MaskedNode) for x in inside)

    nodes = jax.tree_util.tree_flatten_with_path(tree, is_leaf=stops)[0]
    return ["/".join(map(_piece, path)) for path, node in nodes if stops(node) and taken(node)]


def names_of_axes(tree: PyTree, *, lasting: bool = False) -> list[Any]:
    """Per leaf the names of its axes that its box carries, or None; in the order of `jax.tree.leaves`.

    Args:
      tree: any pytree.
      lasting: only those that the leaves of updates carry as well: not those of Flax boxes and Variables.

    Returns:
      One entry per leaf.

    Example:
      >>> from flax.core import meta
      >>> names_of_axes({"a": meta.Partitioned(1.0, names=("embed",)), "b": 2.0})
      [('embed',), None]
    """
    nodes = jax.tree.leaves(tree, is_leaf=is_box)
    return [axes_of_box(node, lasting=lasting) for node in nodes for _ in jax.tree.leaves(node)]


def map_named(function: Callable[..., Any], tree: PyTree, *rest: Any) -> Any:
    """`jax.tree.map` whose function also gets the name of the leaf, first.

    Args:
      function: (name, leaf, *leaves of the other trees) -> leaf.
      tree: any pytree.
      *rest: trees of the same structure, or of which `tree` is a prefix.

    Returns:
      A tree like `tree`.

    Example:
      >>> map_named(lambda name, x: f"{name}={x}", {"w": 1, "b": None})
      {'b': None, 'w': 'w=1'}
    """
    leaves, structure = jax.tree.flatten(tree)
    columns = [structure.flatten_up_to(other) for other in rest]
    return structure.unflatten([function(*row) for row in zip(names(tree), leaves, *columns, strict=True)])
