"""A schedule that is an array: the value of every step is looked up."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit.catalogue import Paper, register
from gradkit.schedules.phases import Phase, Schedule, real_array


def array_schedule(values: Any) -> Schedule:
    """The values of an array, one per step, and the last one ever after.

    Equations: values[min(step, n - 1)].

    Args:
      values: array of one axis of n numbers, not empty; may be traced.

    Returns:
      A schedule of one phase.

    Raises:
      ValueError: not one axis, or empty.

    Example:
      >>> print(array_schedule([3.0, 1.0, 2.0])(jnp.arange(5)))
      [3. 1. 2. 2. 2.]

    Reference: the second run of Defazio et al. When, Why and How Much? Adaptive Learning Rate Scheduling by
    Refinement. 2023, arXiv 2310.07831; for all schedules that were measured, and curves drawn by hand.
    """
    try:
        table = real_array(values)
    except (TypeError, ValueError):
        raise ValueError(f"values must be an array of numbers, one per step, got {values!r}") from None
    if table.ndim != 1 or not table.size:
        raise ValueError(f"values must be an array of one axis that is not empty, got shape {table.shape}")

    def at(since: jax.Array, before: Any) -> jax.Array:
        del before
        return table[jnp.clip(since.astype(int), 0, table.size - 1)]

    return Schedule((Phase(table.size, at, lambda _: table[-1]),))


register(
    array_schedule,
    form="schedule",
    paper=Paper(
        "When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement", "Defazio et al.", 2023, "2310.07831"
    ),
    example={"values": (0.1, 0.3, 0.2, 0.1)},
)
