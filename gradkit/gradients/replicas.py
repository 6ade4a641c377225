"""What sources share where they run once per replica, under an axis of `vmap` or `shard_map`."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit.types import PyTree


def own_copy(params: PyTree, axis_name: Any) -> Any:
    """The parameters as a value of each replica, so that a gradient with respect to them is its own.

    `shard_map` knows which arrays are the same on all replicas, and sums a gradient with respect to such an array
    over them by itself: a mean of it would then be a sum. This says that they might differ, and compiles to
    nothing.
    """
    if axis_name is None:
        return params
    always = jax.lax.axis_index(axis_name) >= 0
    return jax.tree.map(lambda x: jnp.where(always, x, x), params)


def mean_over(tree: PyTree, axis_name: Any) -> Any:
    """The mean over the replicas, in one collective; the tree itself without an axis."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)
