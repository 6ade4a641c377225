"""REX: a learning rate that stays high for most of a budget and falls fast at its end."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.phases import Phase, Schedule, real_array
from gradkit.types import Scalar


def rex(
    peak_value: Scalar,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    end_value: Scalar = 0.0,
    alpha: Scalar = 0.5,
    beta: Scalar = 0.5,
) -> Schedule:
    """A reflected exponential: between a line and a step, for training on a budget.

    Equations, with t = step, W = warmup_steps, T = total_steps, and the remaining fraction z of the budget:

        z = max(1 - (t - W) / (T - W), 0)
        value = peak (t + 1) / W                            t < W
              = end + (peak - end) z / (alpha + beta z)     t >= W

    Args:
      peak_value: largest value, >= 0. May be traced.
      total_steps: T > W. The last value is that of step T.
      warmup_steps: W >= 0, steps over which the value rises linearly; the first has peak_value / W. Default 0.
      end_value: last value, >= 0. Default 0.
      alpha: constant of the denominator, > 0. Default 0.5 (paper). With 1, and beta = 0, the fall is a line.
      beta: factor of z in the denominator, >= 0. Default 0.5 (paper). The first value is the peak where alpha + beta is
        1.

    Returns:
      A schedule step -> value, to which phases can be added. No state, no collective.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> print(rex(1.0, total_steps=4)(jnp.arange(6)).round(4))
      [1.     0.8571 0.6667 0.4    0.     0.    ]

    Reference: Chen, Wolfe, Kyrillidis. REX: Revisiting Budgeted Training with an Improved Schedule. 2021, arXiv
    2107.04197.
    """
    for name, value in (("peak_value", peak_value), ("end_value", end_value), ("beta", beta)):
        checks.real(name, value, "[0, inf)")
    checks.real("alpha", alpha, "(0, inf)")
    warmup_steps = checks.integer("warmup_steps", warmup_steps)
    total_steps = checks.integer("total_steps", total_steps, warmup_steps + 1)

    def at(since: jax.Array, before: Any = None) -> jax.Array:
        del before
        peak, end, a, b = (real_array(x) for x in (peak_value, end_value, alpha, beta))
        # Steps are subtracted before they are rounded: float32 has no odd number above 2^24.
        z = real_array(jnp.clip(total_steps - since, 0, total_steps - warmup_steps)) / (total_steps - warmup_steps)
        fall = end + (peak - end) * z / (a + b * z)
        if warmup_steps == 0:
            return fall
        rise = peak * (real_array(jnp.clip(since, 0, warmup_steps - 1)) + 1) / warmup_steps
        return jnp.where(since < warmup_steps, rise, fall)

    return Schedule((Phase(total_steps, at, lambda _: at(jnp.asarray(total_steps, int))),))


register(
    rex,
    form="schedule",
    paper=Paper(
        "REX: Revisiting Budgeted Training with an Improved Schedule", "Chen, Wolfe, Kyrillidis", 2021, "2107.04197"
    ),
    golden=("modern/rex",),
    example={"peak_value": 0.1, "total_steps": 20, "warmup_steps": 5},
)
