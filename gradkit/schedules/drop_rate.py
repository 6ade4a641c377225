"""The rate of dropout over a run: only early, against underfitting, or only late, against overfitting."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.phases import Phase, Schedule, real_array
from gradkit.types import Scalar


def drop_rate_schedule(
    rate: Scalar, *, cutoff_step: int, total_steps: int, mode: str = "standard", decay: str = "constant"
) -> Schedule:
    """The fraction of activations (or, with stochastic depth, layers) that are dropped at each step.

    Equations, with t = step and cutoff = cutoff_step:

        rate_t = rate                                                     "standard"
        rate_t = rate for t < cutoff, then 0                              "early", "constant"
        rate_t = rate (1 - t / (cutoff - 1)) for t < cutoff, then 0       "early", "linear"
        rate_t = 0 for t < cutoff, then rate                              "late", "constant"

    The rate is a traced value: dropout must take a probability that is an array.

    Args:
      rate: largest rate, in [0, 1); may be traced. The paper: 0.1 for early dropout of small models, 0.4 to 0.6 for
        late stochastic depth.
      cutoff_step: where "early" ends and "late" begins, from 0 to `total_steps`; not used by "standard". The paper: 50
        of 300 epochs.
      total_steps: length of the run, >= 1; afterwards the value is constant.
      mode: "standard" (default), "early" or "late".
      decay: of "early", "constant" (default) or "linear"; "late" and "standard" are constant.

    Returns:
      A schedule step -> rate. No state, no collective.

    Raises:
      ValueError: an argument outside its range; "linear" in another mode than "early".

    Example:
      >>> print(drop_rate_schedule(0.5, cutoff_step=3, total_steps=5, mode="early", decay="linear")(jnp.arange(5)))
      [0.5  0.25 0.   0.   0.  ]

    Reference: Liu et al. Dropout Reduces Underfitting. 2023, arXiv 2303.01500. A linear decay of a single step is
    `rate`, as in the official code.
    """
    checks.real("rate", rate, "[0, 1)")
    total_steps = checks.integer("total_steps", total_steps, 1)
    cutoff_step = checks.integer("cutoff_step", cutoff_step)
    checks.choice("mode", mode, ("standard", "early", "late"))
    checks.choice("decay", decay, ("constant", "linear"))
    if cutoff_step > total_steps:
        raise ValueError(
            f"drop_rate_schedule: cutoff_step must be at most total_steps={total_steps}, got {cutoff_step}"
        )
    if decay == "linear" and mode != "early":
        raise ValueError(
            f"drop_rate_schedule: decay must be 'constant' with mode={mode!r}, got 'linear'; write mode='early'"
        )

    def at(since: jax.Array, before: Any = None) -> jax.Array:
        del before
        full, none = real_array(rate), real_array(0.0)
        if mode == "standard":
            return full * jnp.ones_like(real_array(since))
        early = since < cutoff_step
        if mode == "late":
            return jnp.where(early, none, full)
        gone = real_array(jnp.clip(since, 0, cutoff_step)) / max(cutoff_step - 1, 1) if decay == "linear" else none
        return jnp.where(early, full * (1 - gone), none)

    return Schedule((Phase(total_steps, at, lambda _: at(jnp.asarray(total_steps, int))),))


register(
    drop_rate_schedule,
    form="schedule",
    paper=Paper("Dropout Reduces Underfitting", "Liu et al.", 2023, "2303.01500"),
    golden=("large_batch/drop_rate_schedule",),
    example={"rate": 0.2, "cutoff_step": 6, "total_steps": 20, "mode": "early", "decay": "linear"},
)
