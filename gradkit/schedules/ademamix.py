"""The warm-ups of AdEMAMix: of the weight and of the decay of its slow momentum."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.builders import warmup
from gradkit.schedules.phases import Phase, Schedule, real_array
from gradkit.types import Scalar

PAPER = Paper("The AdEMAMix Optimizer: Better, Faster, Older", "Pagliardini, Ablin, Grangier", 2024, "2409.03137")


def ademamix_alpha_schedule(alpha: Scalar, *, warmup_steps: int) -> Schedule:
    """The weight of the slow momentum: it grows linearly, and is alpha at the last of the warm-up updates.

    Equations, with t = step + 1:

        alpha_t = alpha min(t / warmup_steps, 1)

    Args:
      alpha: last value, >= 0; may be traced.
      warmup_steps: updates until it is reached, >= 1; in the paper all steps of the training.

    Returns:
      A schedule step -> value; step 0 is the first update, t = 1. No state, no collective.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> print(ademamix_alpha_schedule(8.0, warmup_steps=4)(jnp.arange(6)))
      [2. 4. 6. 8. 8. 8.]

    Reference: Pagliardini, Ablin, Grangier. The AdEMAMix Optimizer: Better, Faster, Older. 2024, arXiv 2409.03137.
    The official code counts t from 1, and so is this one step ahead of its function of the same number.
    """
    checks.real("alpha", alpha, "[0, inf)")
    warmup_steps = checks.integer("warmup_steps", warmup_steps, 1)
    return warmup(warmup_steps - 1, alpha, init_value=alpha / warmup_steps)


def ademamix_b3_schedule(b3: Scalar, *, b1: Scalar, warmup_steps: int) -> Schedule:
    """The decay of the slow momentum: it starts at that of the fast one, when there are few gradients to average.

    Equations, with t = step + 1; the half-life of b3_t grows linearly from that of b1 to that of b3:

        p = min(t / warmup_steps, 1)
        ln(b3_t) = ln(b1) ln(b3) / ((1 - p) ln(b3) + p ln(b1))

    Args:
      b3: last value, in (0, 1).
      b1: decay of the fast momentum, in (0, 1), not above b3.
      warmup_steps: updates until b3 is reached, >= 1; in the paper all steps of the training.

    Returns:
      A schedule step -> value; step 0 is the first update, t = 1. No state, no collective.

    Raises:
      ValueError: an argument outside its range, or b3 below b1.

    Example:
      >>> [round(float(b3), 4) for b3 in ademamix_b3_schedule(0.999, b1=0.9, warmup_steps=4)(jnp.arange(6))]
      [0.9961, 0.998, 0.9987, 0.999, 0.999, 0.999]

    Reference: Pagliardini, Ablin, Grangier. The AdEMAMix Optimizer: Better, Faster, Older. 2024, arXiv 2409.03137.
    The official code adds 1e-8 to the decays under the logarithm, against b1 = 0, which raises `ValueError` here.
    """
    checks.real("b1", b1, "(0, 1)")
    checks.real("b3", b3, "(0, 1)")
    warmup_steps = checks.integer("warmup_steps", warmup_steps, 1)
    if isinstance(b1, int | float) and isinstance(b3, int | float) and b3 < b1:
        raise ValueError(f"ademamix_b3_schedule: b3 must be at least b1, got b3={b3} and b1={b1}")

    def at(since: jax.Array, _: Any) -> jax.Array:
        p = jnp.clip((real_array(since) + 1) / warmup_steps, 0, 1)
        fast, slow = jnp.log(real_array(b1)), jnp.log(real_array(b3))
        return jnp.exp(fast * slow / ((1 - p) * slow + p * fast))

    return Schedule((Phase(warmup_steps - 1, at, lambda _: b3),))


register(ademamix_alpha_schedule, form="schedule", paper=PAPER, example={"alpha": 5.0, "warmup_steps": 8})
register(ademamix_b3_schedule, form="schedule", paper=PAPER, example={"b3": 0.999, "b1": 0.9, "warmup_steps": 8})
