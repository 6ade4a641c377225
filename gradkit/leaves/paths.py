"""Names of the leaves of a tree: `a/b/c`, the same at `init` and at `update`.

The pieces of a path are dictionary keys, attribute names and indices. A Flax NNX `Variable` counts as
one leaf, so a parameter has one name whether the tree holds Variables (as in `nnx.Optimizer` at init)
or bare arrays (as in its update).
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _piece(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def names(tree: Any) -> list[str]:
    """The names of all leaves, in the order of `jax.tree.leaves`.

    Args:
      tree: any pytree; an NNX Variable is one leaf.

    Returns:
      One name `a/b/c` per leaf; `None` and `optax.MaskedNode` are no leaves.

    Example:
      >>> names({"dense": {"kernel": 1, "bias": 2}, "layers": [3, 4]})
      ['dense/bias', 'dense/kernel', 'layers/0', 'layers/1']
    """
    nodes = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)[0]
    return ["/".join(map(_piece, path)) for path, node in nodes for _ in jax.tree.leaves(node)]


def masked_names(tree: Any) -> list[str]:
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
        return _is_variable(node) or isinstance(node, optax.MaskedNode)

    def taken(node: Any) -> bool:
        inside = jax.tree.leaves(node, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
        return any(isinstance(x, optax.MaskedNode) for x in inside)

    nodes = jax.tree_util.tree_flatten_with_path(tree, is_leaf=stops)[0]
    return ["/".join(map(_piece, path)) for path, node in nodes if stops(node) and taken(node)]


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
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
