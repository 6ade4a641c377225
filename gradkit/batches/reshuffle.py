"""Random reshuffling: every example once per epoch, in an order that is drawn anew for each.

    epoch e = step // n,   n = floor(examples / batch size)
    the indices of a step are entries (step - e n) B, ..., (step - e n) B + B - 1 of a permutation drawn for epoch e

Sampling without replacement: the mean of the gradients of one epoch, at one point, is that of all its examples.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.keys import as_key, check_key
from gradkit.types import Key


def reshuffle(num_examples: int, batch_size: int, *, key: Key = 0) -> Callable[[Any], jax.Array]:
    """The examples of every step, without replacement within an epoch.

    Equations: at the head of this file. A function of the step alone: a training goes on from any step with the same
    batches, and nothing is kept between steps. What is left of an epoch behind its last whole batch is not used in that
    epoch; in another order it is used in the next.

    Args:
      num_examples: how many there are, >= 1.
      batch_size: B, in [1, num_examples].
      key: a random key or an integer. Default 0.

    Returns:
      step -> indices of shape (B,), int32, under jit as well.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> batch = reshuffle(6, 2, key=1)
      >>> sorted(jnp.concatenate([batch(step) for step in (0, 1, 2)]).tolist())
      [0, 1, 2, 3, 4, 5]

    Reference: Garrigos, Gower. Handbook of Convergence Theorems for (Stochastic) Gradient Methods. 2023, arXiv
    2301.11235.
    """
    num_examples = checks.integer("num_examples", num_examples, 1)
    batch_size = checks.integer("batch_size", batch_size, 1)
    if batch_size > num_examples:
        raise ValueError(f"batch_size must be in [1, num_examples = {num_examples}], got {batch_size}")
    check_key(key)
    typed, batches = as_key(key), num_examples // batch_size

    def indices(step: Any) -> jax.Array:
        order = jax.random.permutation(jax.random.fold_in(typed, step // batches), num_examples)
        return jax.lax.dynamic_slice_in_dim(order, step % batches * batch_size, batch_size).astype(jnp.int32)

    return indices


register(
    reshuffle,
    form="function",
    paper=Paper(
        "Handbook of Convergence Theorems for (Stochastic) Gradient Methods", "Garrigos, Gower", 2023, "2301.11235"
    ),
    example={"num_examples": 6, "batch_size": 2},
)
