"""Gradual warm-up: from the learning rate of the small batch to that of the large one."""

from collections.abc import Callable
from typing import Any

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.phases import Schedule, ramp, real_array, unending
from gradkit.types import Scalar


def gradual_warmup(
    base: Scalar,
    *,
    kappa: Scalar,
    warmup_steps: int,
    after: Callable[[Any], Any] | None = None,
    shape: str = "linear",
) -> Schedule:
    """The warm-up that goes with `gk.batches.linear_scaling`.

    Equations, with t = step and W = warmup_steps:

        rate_t = base + (kappa base - base) t / W          t < W;  with shape="constant", base
        rate_t = after(t), or kappa base                   t >= W

    Also after the warm-up t counts from the first step of the run, so the steps at which `after` falls do not shift.

    Args:
      base: the learning rate of the small batch, >= 0, with which the run begins; may be traced. The paper: 0.1 at 256.
      kappa: large batch / small batch, > 0; may be traced.
      warmup_steps: W >= 0. The paper: 5 epochs.
      after: the schedule of the large batch, step -> learning rate, called with the steps since the start of the run.
        Default None: constant kappa base.
      shape: "linear" (default), or "constant": base for W steps, the paper's other variant.

    Returns:
      A schedule step -> rate. No state, no collective.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> steps = jnp.arange(6)
      >>> print(gradual_warmup(1.0, kappa=8, warmup_steps=2, after=lambda t: jnp.where(t < 4, 8.0, 0.8))(steps))
      [1.  4.5 8.  8.  0.8 0.8]

    Reference: Goyal et al. Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour. 2017, arXiv 1706.02677.
    """
    checks.real("base", base, "[0, inf)")
    checks.real("kappa", kappa, "(0, inf)")
    warmup_steps = checks.integer("warmup_steps", warmup_steps)
    checks.choice("shape", shape, ("linear", "constant"))
    if after is not None:
        checks.function("after", after)
    peak = real_array(kappa) * real_array(base)
    rise = ramp(warmup_steps, "linear", base, peak if shape == "linear" else None)
    normal = unending(lambda since: peak if after is None else real_array(after(since + warmup_steps)))
    return rise + normal


register(
    gradual_warmup,
    form="schedule",
    paper=Paper("Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", "Goyal et al.", 2017, "1706.02677"),
    example={"base": 0.1, "kappa": 8, "warmup_steps": 6},
)
