"""The power of ReSTE over a run: from the straight-through estimator towards the sign."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.phases import Phase, Schedule, real_array
from gradkit.types import Scalar

PAPER = Paper(
    "Estimator Meets Equilibrium Perspective: A Rectified Straight Through Estimator for Binary Neural Networks "
    "Training",
    "Wu et al.",
    2023,
    "2308.06689",
)


def reste_power(total_steps: int, end: Scalar = 3.0) -> Schedule:
    """The power of `gk.layers.reste_sign`: slowly at first, then faster, from 1 to `end`.

        o_t = 1 + (1 - cos(pi t / (2 total_steps))) (end - 1),    end for t >= total_steps

    Args:
      total_steps: length of the run, >= 1; the code counts epochs.
      end: last value, >= 1; may be traced. Default 3 (official code).

    Returns:
      A schedule step -> power. No state, no collective.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> print(reste_power(2)(jnp.arange(4)).round(3))
      [1.    1.586 3.    3.   ]

    Reference: Wu et al. Estimator Meets Equilibrium Perspective: A Rectified Straight Through Estimator for Binary
    Neural Networks Training. 2023, arXiv 2308.06689.
    """
    total_steps = checks.integer("total_steps", total_steps, 1)
    checks.real("end", end, "[1, inf)")

    def at(since: jax.Array, before: Any = None) -> jax.Array:
        del before
        share = real_array(jnp.clip(since, 0, total_steps)) / total_steps
        # 1 - cos(2 a), as a difference of nearby numbers it would lose half of its digits.
        return 1 + 2 * jnp.square(jnp.sin(share * (math.pi / 4))) * (real_array(end) - 1)

    return Schedule((Phase(total_steps, at, lambda _: at(jnp.asarray(total_steps, int))),))


register(reste_power, form="schedule", paper=PAPER, example={"total_steps": 20, "end": 3.0})
