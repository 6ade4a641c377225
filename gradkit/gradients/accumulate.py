"""Sums over the microbatches of a batch, one microbatch in memory at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit.engine.core import zeros
from gradkit.leaves import names


def split(batch: Any, microbatches: int, method: str) -> Any:
    """Every leaf (B, ...) as (microbatches, B / microbatches, ...).

    Microbatch i holds examples i, i + microbatches, ...: where examples are sharded over devices, each device then
    has a share of every microbatch. Consecutive examples would leave most devices idle.

    Raises:
      ValueError: no leaf, a leaf without axes, leaves of several batch sizes, a size that does not divide.
    """
    sizes = {name: jnp.shape(x)[:1] for name, x in zip(names(batch), jax.tree.leaves(batch), strict=True)}
    if len(set(sizes.values())) != 1 or () in sizes.values():
        found = {name: size[0] if size else "no axis" for name, size in sizes.items()}
        raise ValueError(f"{method}: every leaf of the batch needs the same leading axis, got {found or 'no leaf'}")
    ((size,),) = set(sizes.values())
    if size == 0 or size % microbatches:
        raise ValueError(f"{method}: a batch of {size} does not divide into {microbatches} microbatches of equal size")

    def leaf(x: Any) -> jax.Array:
        return jnp.asarray(x).reshape(size // microbatches, microbatches, *jnp.shape(x)[1:]).swapaxes(0, 1)

    return jax.tree.map(leaf, batch)


def accumulate(function: Callable[[Any], tuple[Any, Any]], batches: Any) -> tuple[Any, Any]:
    """Sums and collects over microbatches.

    Args:
      function: microbatch -> (tree of floating point arrays that is summed, anything else).
      batches: result of `split`.

    Returns:
      (sums, in float32 or wider; the rest, stacked along a new leading axis).
    """
    first = jax.eval_shape(lambda b: function(jax.tree.map(lambda x: x[0], b))[0], batches)

    def add(total: Any, microbatch: Any) -> tuple[Any, Any]:
        terms, rest = function(microbatch)
        return jax.tree.map(lambda t, x: t + x.astype(t.dtype), total, terms), rest

    return jax.lax.scan(add, zeros(first), batches)
