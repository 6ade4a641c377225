"""The parameters to evaluate and save, where a method lets the user hold others.

A state says so by a method `eval_params(params) -> params` of its NamedTuple, written for the leaves that the state has
arrays for: Nesterov's method holds the point of the next gradient, an average is kept beside the iterates. Leaves that
belong to other groups are masked in the state, and remain as they are.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.leaves.keeping import without_kept
from gradkit.leaves.paths import names
from gradkit.types import PyTree, ScalarOrSchedule

# What a tree that is one array is built like.
LEAF = jax.tree.structure(0)


def eval_params(state: ScalarOrSchedule, params: PyTree) -> Any:
    """The parameters to evaluate and save: those that a method means, where it lets the user hold others.

    Args:
      state: the state of any transformation. Methods with evaluation parameters are found in every wrapper and in
        every group of parameters; optax's `contrib.schedule_free` is known as well.
      params: what the user holds.

    Returns:
      Every leaf at the evaluation point of the method that trains it; leaves of methods that have none are those of
      `params`, and `params` itself is returned where no method has one.

    Raises:
      ValueError: two methods have an evaluation point for one leaf, as Nesterov's method and an average in one chain
        do; or a method was given other parameters than `params`, as inside `gk.reparameterize` or `gk.block_leaves`;
        or the two arguments came in the other order.

    Example:
      >>> eval_params(optax.adam(0.1).init(1.0), 1.0)
      1.0
    """
    checks.arrays(params=params)
    methods = list(_methods(without_kept(state)))
    if not methods:
        if _has_state(params) and not _has_state(state):
            raise ValueError(
                "eval_params: the state of a method comes first, then params, got them in the other order; write "
                "eval_params(opt_state, params)"
            )
        return params
    leaves, structure = jax.tree.flatten(params)
    known = names(params)
    owner: list[str | None] = [None] * len(leaves)
    for method in methods:
        own, indices = _own(method, params)
        for i, x in zip(indices, jax.tree.leaves(_evaluated(method, own)), strict=True):
            if owner[i] is not None:
                raise ValueError(
                    f"eval_params: {owner[i]} and {_name(method)} both have an evaluation point for the leaf "
                    f"{known[i]!r}; call state.eval_params(params) of the one that you want"
                )
            owner[i], leaves[i] = _name(method), x
    return structure.unflatten(leaves)


def _has_point(node: Any) -> bool:
    return isinstance(node, optax.contrib.ScheduleFreeState) or callable(getattr(node, "eval_params", None))


def _is_state(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields") and type(node).__name__.endswith("State")


def _has_state(tree: Any) -> bool:
    """Whether the state of a transformation, of this library or of optax, is in a tree; known by its name."""
    return any(map(_is_state, jax.tree.leaves(tree, is_leaf=_is_state)))


def _methods(state: Any) -> Iterator[Any]:
    """The states that have an evaluation point; states that are kept encoded are decoded where there is one inside."""

    def stop(node: Any) -> bool:
        return _has_point(node) or hasattr(node, "decoded")

    for node in jax.tree.leaves(state, is_leaf=stop):
        if _has_point(node):
            yield node
        elif hasattr(node, "decoded"):
            yield from _methods(node.decoded())


def _name(method: Any) -> str:
    return type(method).__name__.removesuffix("State")


def _evaluated(method: Any, params: Any) -> Any:
    if isinstance(method, optax.contrib.ScheduleFreeState):
        return optax.contrib.schedule_free_eval_params(method, params)
    return method.eval_params(params)


def _fields(node: Any) -> Any:
    level = jax.tree_util.default_registry.flatten_one_level(node)
    return level[0] if level else ()


def _own(method: Any, params: Any) -> tuple[Any, list[int]]:
    """The parameters with `optax.MaskedNode` where a method has no array for them, and the indices of the others."""
    found = [own for field in _fields(method) for own in [_matching(field, params)] if own is not None]
    if not found:
        raise ValueError(
            f"eval_params: {_name(method)} has an evaluation point for other parameters than those given; inside a "
            "wrapper that changes parameters, as gk.reparameterize and gk.block_leaves do, it cannot be read: put the "
            "method outside of the wrapper"
        )
    # A counter fits parameters that are a single number: a field with masks says more.
    return min(found, key=lambda own: len(own[1]))


def _matching(field: Any, params: Any) -> tuple[Any, list[int]] | None:
    """The parameters masked as a field of a state is, and the indices of the leaves that are not masked; None where
    the field is no tree like the parameters."""

    def masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    # Where a group is given by the prefix of a tree, one mask stands for all leaves below it.
    arrays, structure = jax.tree.flatten(field, is_leaf=masked)
    try:
        below = structure.flatten_up_to(params)
    except ValueError:
        return None
    own, indices, count = [], [], 0
    for x, node in zip(arrays, below, strict=True):
        if masked(x):
            own.append(x)
        elif jax.tree.structure(node) == LEAF and jnp.shape(node) == jnp.shape(x):
            own.append(node)
            indices.append(count)
        else:
            return None
        count += len(jax.tree.leaves(node))
    return structure.unflatten(own), indices
