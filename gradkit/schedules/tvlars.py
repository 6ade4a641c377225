"""The time factor of TVLARS: large steps at first, without a warm-up, then a fall that becomes exponential."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.phases import Phase, Schedule, real_array
from gradkit.types import Scalar


def tvlars_schedule(
    decay_rate: Scalar = 1e-3, *, delay: Scalar = 0, alpha: Scalar = 1.0, gamma_min: Scalar = 0.0
) -> Schedule:
    """A factor that falls from about 1 / alpha + gamma_min to gamma_min, with its bend at `delay`.

    Equations, with t = step + 1:

        phi_t = 1 / (alpha + exp(decay_rate (t - delay))) + gamma_min

    At t = delay it is 1 / (alpha + 1) + gamma_min.

    Args:
      decay_rate: how fast it falls, per step, >= 0. Default 1e-3.
      delay: the step t of the bend, counted from 1, >= 0. Default 0: it falls from the beginning.
      alpha: the inverse of the value long before the bend, > 0. Default 1 (paper, from a second source); the official
        code has 0.1.
      gamma_min: the value that it falls to, >= 0. Default 0 (official code).

    Returns:
      A schedule step -> value; step 0 is the first update, t = 1. No state, no collective.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> [round(float(phi), 4) for phi in tvlars_schedule(0.5, delay=3, gamma_min=0.1)(jnp.array([0, 2, 1000]))]
      [0.8311, 0.6, 0.1]

    Reference: Do et al. Revisiting LARS for Large Batch Training Generalization of Neural Networks. 2024, arXiv
    2309.14053. The official code counts t from 1, does not read its argument for the delay, and has no smallest value:
    its learning rate vanishes where decay_rate t >> 1.
    """
    checks.real("decay_rate", decay_rate, "[0, inf)")
    checks.real("delay", delay, "[0, inf)")
    checks.real("alpha", alpha, "(0, inf)")
    checks.real("gamma_min", gamma_min, "[0, inf)")

    def at(since: jax.Array, before: Any) -> jax.Array:
        del before
        after_bend = real_array(since) + (1 - real_array(delay))
        return 1 / (real_array(alpha) + jnp.exp(real_array(decay_rate) * after_bend)) + real_array(gamma_min)

    return Schedule((Phase(None, at, lambda _: gamma_min),))


register(
    tvlars_schedule,
    form="schedule",
    paper=Paper(
        "Revisiting LARS for Large Batch Training Generalization of Neural Networks", "Do et al.", 2024, "2309.14053"
    ),
    example={"decay_rate": 0.2, "delay": 5},
)
