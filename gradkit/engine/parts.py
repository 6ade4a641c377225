"""What methods keep of the tensors of a stack: parts, how each of them is kept, and under which keys.

A method's `make` returns a NamedTuple of fields, each a tree of `like`, `beside` and `counted`, or None:

    like      (B, d_1, ..., d_k)       without owners: in the parameter's shape and box           mu/mlp/kernel
    beside    (B, ...), of some axes   (stack, ...), nested dictionaries of arrays                S/mlp/kernel/0
    counted   (B,) whole numbers       their sum, one number                                      failed

With owners each field is a dictionary: key of a stack -> `Owned`, such as S/64x176.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit.leaves.derived import Sources

LIKE, COUNTED = "like", "counted"


@functools.partial(jax.tree_util.register_dataclass, data_fields=["value"], meta_fields=["kind"])
@dataclasses.dataclass(frozen=True)
class Part:
    """An array that belongs to the tensors of a stack, and how it is kept: `LIKE`, `COUNTED`, or the sources of its
    axes behind the first."""

    value: Any
    kind: Any


def like(x: Any) -> Part:
    """What has as many entries as the tensors, in their order."""
    return Part(x, LIKE)


def beside(x: Any, sources: Sources) -> Part:
    """What belongs to some axes: for every axis of x but the first, which axes of a tensor it may be sharded like."""
    return Part(x, tuple(tuple(s) for s in sources))


def counted(rows: int) -> Part:
    """How often something happened to each tensor, none so far."""
    return Part(jnp.zeros((rows,), jnp.int32), COUNTED)


def is_part(node: Any) -> bool:
    return isinstance(node, Part)


def bare(own: Any) -> Any:
    """The arrays of a tree of parts."""
    return jax.tree.map(lambda part: part.value, own, is_leaf=is_part)


def parts_of(value: Any) -> list[tuple[Any, Part]]:
    """The parts of a field, with their paths."""
    return jax.tree_util.tree_flatten_with_path(value, is_leaf=is_part)[0]


def kind_of(value: Any) -> Any:
    """How a field is kept: `LIKE`, `COUNTED`, as "pieces", or None where it has no parts."""
    kinds = {part.kind for _, part in parts_of(value)}
    if value is None:
        return None
    return next(iter(kinds)) if kinds in ({LIKE}, {COUNTED}) else "pieces"


def keys_of(path: Any) -> tuple[str, ...]:
    """The keys along a path."""
    return tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def put(tree: dict[str, Any], keys: tuple[str, ...], x: Any) -> None:
    """Puts an array into nested dictionaries."""
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = x


def get(tree: Any, keys: tuple[str, ...]) -> Any:
    """What `put` has put there."""
    for key in keys:
        tree = tree[key]
    return tree


def merged(*trees: Mapping[Any, Any]) -> dict[Any, Any]:
    """Nested dictionaries as one.

    >>> merged({1: {"0": "a"}}, {1: {"1": "b"}, 2: {}})
    {1: {'0': 'a', '1': 'b'}, 2: {}}
    """
    out: dict[Any, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            out[key] = merged(out.get(key, {}), value) if isinstance(value, dict) else value
    return out


@functools.cache
def placeholder() -> type:
    """The type of what `optax.tree_utils.tree_map_params` gives to `init` in place of parameters."""
    found: list[type] = []

    def init(params: Any) -> tuple[()]:
        found.append(type(params))
        return ()

    optax.tree_utils.tree_map_params(init, lambda x: x, ())
    return found[0]
