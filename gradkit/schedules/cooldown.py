"""The temperature of sampling over a run: high first, so that small data sets are seen, then low, so that they are not
learnt by heart."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.phases import Phase, Schedule, real_array
from gradkit.types import Scalar

PAPER = Paper("Upsample or Upweight? Balanced Training on Heavily Imbalanced Datasets", "Li et al.", 2024, "2410.04579")


def cooldown(switch_step: int, *, tau_high: Scalar = 5.0, tau_low: Scalar = 1.0) -> Schedule:
    """The temperature of `gk.batches.temperature_probs` over a run.

        tau_t = tau_high for t < switch_step,    tau_low afterwards

    Args:
      switch_step: first step at the low temperature, >= 0. The paper: half of the run.
      tau_high: > 0; may be traced. Default 5 (paper).
      tau_low: > 0; may be traced. Default 1 (paper): in proportion to sizes.

    Returns:
      A schedule step -> temperature. No state, no collective.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> print(cooldown(2)(jnp.arange(4)))
      [5. 5. 1. 1.]

    Reference: Li et al. Upsample or Upweight? Balanced Training on Heavily Imbalanced Datasets. 2024, arXiv 2410.04579.
    """
    switch_step = checks.integer("switch_step", switch_step)
    checks.real("tau_high", tau_high, "(0, inf)")
    checks.real("tau_low", tau_low, "(0, inf)")

    def at(since: jax.Array, before: Any = None) -> jax.Array:
        del before
        return jnp.where(since < switch_step, real_array(tau_high), real_array(tau_low))

    return Schedule((Phase(switch_step, at, lambda _: real_array(tau_low)),))


register(cooldown, form="schedule", paper=PAPER, example={"switch_step": 10})
