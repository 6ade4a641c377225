"""Random reshuffling: every example once per epoch, in a new random order for each epoch."""

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

    Equations:

        n = floor(num_examples / B),   e = step // n                     steps per epoch, and the epoch
        indices = pi_e[(step - e n) B : (step - e n) B + B]              pi_e a random permutation for epoch e

    It samples without replacement: the mean of the gradients of one epoch, at one point, is that of all its examples.
    The indices depend on the step alone: training continues from any step with the same batches, and nothing is kept
    between steps. The num_examples - n B last examples of a permutation are not used in that epoch.

    Args:
      num_examples: the number of examples, >= 1.
      batch_size: B, in [1, num_examples].
      key: a random key (typed key or integer). Default 0.

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
