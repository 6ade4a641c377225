"""The quadratic synchronization rule: rounds of local steps grow as the learning rate falls."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import at_count
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper("A Quadratic Synchronization Rule for Distributed Deep Learning", "Gu et al.", 2023, "2310.14423")
# The longest round: far above any training, and far below where a sum of two overflows.
LONGEST = 2**30


def quadratic_synchronization(
    learning_rate: ScalarOrSchedule,
    *,
    alpha: Scalar,
    min_steps: int,
    warmup_steps: int = 0,
    warmup_period: int | None = None,
    total_steps: int | None = None,
    power: Scalar = 2,
) -> Callable[[Any], jax.Array]:
    """How many local steps the round has that begins at a step; the `sync_every` of `gk.parallel.local_updates`.

    Equations, with eta the learning rate at the step where a round begins, and T = total_steps:

        H = warmup_period                                   for step < warmup_steps
        H = max(min_steps, floor((alpha / eta)^power))      then
        H = max(1, min(H, T - step))                        with T: the last step ends a round

    Args:
      learning_rate: a schedule of the steps of a replica, or a number >= 0.
      alpha: the learning rate below which rounds have more than one step, > 0; tuned. The paper: 0.0175 for ViT with
        local AdamW at a peak learning rate of 0.008 (from a second source).
      min_steps: the shortest round, >= 1. The paper: 4 (from a second source).
      warmup_steps: steps >= 0 in which rounds have `warmup_period` steps, because the learning rate is small there,
        too. Default 0.
      warmup_period: length of rounds during the warm-up, >= 1. Default None: `min_steps`.
      total_steps: T >= 1, the end of training, which ends the last round. Default None: unknown.
      power: > 0. Default 2; 1 and 3 are what the paper compares with.

    Returns:
      A function step -> int32 length of the round, jittable. The parameters are exchanged once per round: their size
      divided by H per step.

    Raises:
      ValueError: a hyperparameter outside its range; `warmup_period` without `warmup_steps`.

    Example:
      >>> from gradkit.schedules import array_schedule
      >>> period = quadratic_synchronization(array_schedule([0.8, 0.2, 0.1]), alpha=0.4, min_steps=2)
      >>> [int(period(step)) for step in (0, 1, 2)]  # at least 2, (0.4 / 0.2)^2, (0.4 / 0.1)^2
      [2, 4, 16]

    Reference: Gu et al. A Quadratic Synchronization Rule for Distributed Deep Learning. 2023, arXiv 2310.14423. A ratio
    that is an integer but for rounding counts as one. Moments of optimizers stay on their replicas, as in the official
    code by default: `average_state` of `gk.parallel.local_updates`.
    """
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    checks.real("alpha", alpha, "(0, inf)")
    checks.real("power", power, "(0, inf)")
    min_steps = checks.integer("min_steps", min_steps, 1, maximum=LONGEST)
    warmup_steps = checks.integer("warmup_steps", warmup_steps)
    total_steps = checks.integer("total_steps", total_steps, 1, optional=True)
    if warmup_period is not None and warmup_steps == 0:
        raise ValueError(
            "quadratic_synchronization: warmup_period must be None without warmup_steps, got "
            f"{warmup_period}; write warmup_steps=..., or warmup_period=None"
        )
    first = checks.integer("warmup_period", min_steps if warmup_period is None else warmup_period, 1, maximum=LONGEST)

    def period(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.int32)
        real = jnp.result_type(float)
        rate = jnp.asarray(at_count(learning_rate, step, "learning_rate"), real)
        # Infinite at a learning rate of 0; clipped as a float, because an integer would overflow.
        ratio = jnp.asarray(alpha, real) / rate
        H = jnp.floor(ratio ** jnp.asarray(power, real) * (1 + 8 * jnp.finfo(real).eps))
        H = jnp.clip(H, min_steps, LONGEST).astype(jnp.int32)
        H = jnp.where(step < warmup_steps, jnp.int32(first), H)
        return H if total_steps is None else jnp.maximum(jnp.minimum(H, total_steps - step), 1)

    return period


register(
    quadratic_synchronization,
    form="function",
    paper=PAPER,
    golden=("step_size/quadratic_synchronization",),
    example={"learning_rate": 0.1, "alpha": 0.4, "min_steps": 2},
)
