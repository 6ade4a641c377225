"""Warm-up, then a power of the remaining fraction of steps: the schedule of tuned large-batch baselines."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.phases import Phase, Schedule, real_array
from gradkit.types import Scalar


def warmup_polynomial_schedule(
    peak_value: Scalar,
    *,
    warmup_steps: int,
    total_steps: int,
    init_value: Scalar = 0.0,
    end_value: Scalar = 0.0,
    power: Scalar = 2.0,
    warmup_power: Scalar = 1.0,
    decay_end: int = -1,
) -> Schedule:
    """Rises to a peak, and falls to a last value as a power of the remaining steps.

    Equations, with t = step, W = warmup_steps, T = total_steps, D = T - W + 1, and r = (t / W)^warmup_power:

        value = peak r + (1 - r) init                                       t <= W
              = end + (peak - end) (1 - min(t - W, D) / D)^power            t > W

    With decay_end > 0, t is at most decay_end.

    Args:
      peak_value: largest value, >= 0, at step `warmup_steps`; may be traced.
      warmup_steps: W >= 0; 0 is no warm-up.
      total_steps: T >= W. The last value is reached one step later.
      init_value: value of step 0, >= 0. Default 0, with which the first update is 0.
      end_value: last value, >= 0. Default 0.
      power: of the fall, > 0. Default 2, as in the recipe of LARS.
      warmup_power: of the rise, > 0. Default 1: a line.
      decay_end: step from which the value is constant, > 0. Default -1: none (so is 0).

    Returns:
      A schedule step -> value, to which phases can be added. No state, no collective.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> schedule = warmup_polynomial_schedule(1.0, warmup_steps=2, total_steps=5)
      >>> print(schedule(jnp.arange(8)))
      [0.     0.5    1.     0.5625 0.25   0.0625 0.     0.    ]

    Reference: Nado et al. A Large Batch Optimizer Reality Check: Traditional, Generic Optimizers Suffice Across Batch
    Sizes. 2021, arXiv 2102.06356. D has the "+ 1" of the official code, and so of the LARS baselines it answers.
    """
    for name, value in (("peak_value", peak_value), ("init_value", init_value), ("end_value", end_value)):
        checks.real(name, value, "[0, inf)")
    checks.real("power", power, "(0, inf)")
    checks.real("warmup_power", warmup_power, "(0, inf)")
    warmup_steps = checks.integer("warmup_steps", warmup_steps)
    total_steps = checks.integer("total_steps", total_steps, max(warmup_steps, 1))
    decay_end = checks.integer("decay_end", decay_end, -1)
    D = total_steps - warmup_steps + 1

    def at(since: jax.Array, before: Any = None) -> jax.Array:
        del before
        t = jnp.minimum(since, decay_end) if decay_end > 0 else since
        peak, init, end = (real_array(x) for x in (peak_value, init_value, end_value))
        # Steps are subtracted before they are rounded: float32 has no odd number above 2^24.
        left = real_array(jnp.clip(total_steps + 1 - t, 0, D)) / D
        fall = end + (peak - end) * left ** real_array(power)
        if warmup_steps == 0:
            return fall
        r = (real_array(jnp.clip(t, 0, warmup_steps)) / warmup_steps) ** real_array(warmup_power)
        return jnp.where(t <= warmup_steps, peak * r + (1 - r) * init, fall)

    return Schedule((Phase(total_steps + 1, at, lambda _: at(jnp.asarray(total_steps + 1, int))),))


register(
    warmup_polynomial_schedule,
    form="schedule",
    paper=Paper(
        "A Large Batch Optimizer Reality Check: Traditional, Generic Optimizers Suffice Across Batch Sizes",
        "Nado et al.",
        2021,
        "2102.06356",
    ),
    golden=("large_batch/warmup_polynomial_schedule",),
    example={"peak_value": 0.1, "warmup_steps": 5, "total_steps": 20},
)
