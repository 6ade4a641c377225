"""Containers that hold one parameter and something about it: Flax boxes, NNX Variables, named arrays.

A box counts as one leaf, with the name of the box: a parameter has one name whether it is in a box (as in the `init` of
`nnx.Optimizer`, or of a Linen model with logical axes) or bare (as in their `update`).
"""

from typing import Any

import jax
import optax
from flax import nnx
from flax.core import meta

_FIELDS = ("value", "array", "raw_value")


def is_box(node: Any) -> bool:
    """Whether a node of a tree is a box: a Linen box, an NNX Variable, or a registered node with one array, such as a
    `NamedArray`, or with an `optax.MaskedNode` in place of it.

    Example:
      >>> is_box(meta.Partitioned(1.0, names=("embed",))), is_box([1.0])
      (True, False)
    """
    if isinstance(node, nnx.Variable | meta.AxisMetadata):
        return True
    if node is None or isinstance(node, jax.Array | dict | list | tuple | nnx.State) or _is_leaf(node):
        return False
    children, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    if len(children) != 1 or len(children[0][0]) != 1:
        return False
    if not (_is_leaf(children[0][1]) or isinstance(children[0][1], optax.MaskedNode)):
        return False
    key = children[0][0][0]
    return (
        isinstance(key, jax.tree_util.FlattenedIndexKey)
        or str(getattr(key, "name", getattr(key, "key", ""))) in _FIELDS
    )


def _is_leaf(node: Any) -> bool:
    return jax.tree_util.all_leaves([node])


def axes_of_box(node: Any, *, lasting: bool = False) -> Any:
    """The names of the axes that a box carries, or None; of Flax boxes and Variables None where `lasting`.

    Example:
      >>> axes_of_box(meta.Partitioned(1.0, names=("embed", "mlp")))
      ('embed', 'mlp')
    """
    if lasting and isinstance(node, nnx.Variable | meta.AxisMetadata):
        return None
    if isinstance(node, nnx.Variable):
        given = node.get_metadata()
        found = next((given[key] for key in ("out_sharding", "sharding", "sharding_names") if given.get(key)), None)
        return getattr(found, "spec", found)
    if isinstance(node, meta.AxisMetadata):
        return getattr(node, "names", None)
    return getattr(node, "axes", None) if is_box(node) else None
