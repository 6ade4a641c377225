"""The infinite schedule: a learning rate without a planned end, for training that goes on with new data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.builders import decay, hold, take, warmup
from gradkit.schedules.phases import Phase, Schedule, real_array
from gradkit.types import Scalar

PAPER = Paper(
    "Beyond Cosine Decay: On the effectiveness of Infinite Learning Rate Schedule for Continual Pre-training",
    "Singh et al.",
    2025,
    "2503.02844",
)


def _inverse_sqrt(steps: int, peak_value: Any, constant_value: Any, timescale: Any) -> Schedule:
    """A phase that falls like the inverse root of the step, and reaches its last value."""

    def q(p: Any) -> jax.Array:
        return 1 / jnp.sqrt(1 + real_array(timescale) * p) - 1

    def at(since: jax.Array, before: Any) -> jax.Array:
        del before
        peak, constant = real_array(peak_value), real_array(constant_value)
        share = q(real_array(jnp.clip(since, 0, steps)) / max(steps, 1)) / q(1.0)
        return peak * (1 - share) + constant * share

    return Schedule((Phase(steps, at, lambda _: constant_value),))


def infinite_schedule(
    peak_value: Scalar,
    *,
    constant_value: Scalar,
    warmup_steps: int,
    cooldown_steps: int,
    cooldown: str = "cosine",
    anneal_start: int | None = None,
    anneal_steps: int | None = None,
    end_value: Scalar | None = None,
    timescale: Any = 10.0,
) -> Schedule:
    """Warms up, cools down to a constant learning rate without an end, and is annealed where a model is needed.

    Equations, with W = warmup_steps, C = cooldown_steps, A = anneal_start, N = anneal_steps and p = (step - W) / C:

        value = peak step / W                                                                step < W
              = constant + (peak - constant) (1 + cos(pi p)) / 2       "cosine"              step < W + C
              = peak + (constant - peak) p                             "linear"              step < W + C
              = peak + (constant - peak) q(p) / q(1)                   "inverse_sqrt"        step < W + C
              = constant                                                                     step < A
              = constant (end / constant)^((step - A) / N)                                   step < A + N
              = end                                                                          afterwards

    q(p) = 1 / sqrt(1 + timescale p) - 1. A later task starts at the constant learning rate: `warmup_steps=0,
    cooldown_steps=0`.

    Args:
      peak_value: largest learning rate, >= 0; may be traced.
      constant_value: learning rate after the cooldown, > 0; may be traced.
      warmup_steps: W >= 0.
      cooldown_steps: C >= 0.
      cooldown: shape of the cooldown, "cosine" (default), "linear" or "inverse_sqrt".
      anneal_start: A >= W + C, step from which the learning rate is annealed. Default None: never; `anneal_branch` then
        anneals from a checkpoint.
      anneal_steps: N >= 1; given with `anneal_start`.
      end_value: learning rate after annealing, > 0; given with `anneal_start`.
      timescale: of "inverse_sqrt", > 0; a larger one falls earlier. Default 10.

    Returns:
      A schedule step -> value. No state, no collective.

    Raises:
      ValueError: a hyperparameter outside its range; one of the three of annealing without the others.

    Example:
      >>> schedule = infinite_schedule(1.0, constant_value=0.4, warmup_steps=2, cooldown_steps=2, cooldown="linear")
      >>> print(schedule(jnp.arange(7)))
      [0.  0.5 1.  0.7 0.4 0.4 0.4]

    Reference: Singh et al. Beyond Cosine Decay: On the effectiveness of Infinite Learning Rate Schedule for Continual
    Pre-training. 2025, arXiv 2503.02844. Where sources differ: the end value is reached after N steps of annealing, as
    in the authors' code; equation 1 can also be read with a division by A + N. In the authors' code C is the step at
    which the cooldown ends; here it is the length of the cooldown.
    """
    checks.real("peak_value", peak_value, "[0, inf)")
    checks.real("constant_value", constant_value, "(0, inf)")
    checks.real("timescale", timescale, "(0, inf)")
    checks.choice("cooldown", cooldown, ["cosine", "linear", "inverse_sqrt"])
    warmup_steps = checks.integer("warmup_steps", warmup_steps)
    cooldown_steps = checks.integer("cooldown_steps", cooldown_steps)
    given = [value is not None for value in (anneal_start, anneal_steps, end_value)]
    if any(given) and not all(given):
        raise ValueError(
            "infinite_schedule: anneal_start, anneal_steps and end_value must be given together, got "
            f"{anneal_start!r}, {anneal_steps!r} and {end_value!r}; without them, anneal_branch makes the annealing"
        )
    if cooldown == "inverse_sqrt":
        fall = _inverse_sqrt(cooldown_steps, peak_value, constant_value, timescale)
    else:
        fall = decay(cooldown, cooldown_steps, constant_value)
    start = warmup(warmup_steps, peak_value) + fall
    if not all(given):
        return start + hold()
    until = checks.integer("anneal_start", anneal_start, warmup_steps + cooldown_steps)
    over = checks.integer("anneal_steps", anneal_steps, 1)
    checks.real("end_value", end_value, "(0, inf)")
    return start + hold(until - warmup_steps - cooldown_steps) + decay("exponential", over, end_value)


def anneal_branch(schedule: Callable[[Any], Any], *, start: int, anneal_steps: int, end_value: Scalar) -> Schedule:
    """Follows a schedule up to a step, and anneals from there.

    Equations, with N = anneal_steps and value = schedule(start):

        rate = schedule(step)                                    step < start
             = value (end / value)^((step - start) / N)          step >= start, and end after N steps

    Args:
      schedule: step -> value > 0; mostly `infinite_schedule` without annealing.
      start: step of the checkpoint the branch starts from, >= 0: the number of updates made so far.
      anneal_steps: N >= 1.
      end_value: learning rate after annealing, > 0; may be traced.

    Returns:
      A schedule. The state of the optimizer continues: its counter is `start`.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> trunk = infinite_schedule(1.0, constant_value=0.4, warmup_steps=1, cooldown_steps=1)
      >>> print(anneal_branch(trunk, start=4, anneal_steps=2, end_value=0.1)(jnp.arange(2, 8)).round(3))
      [0.4 0.4 0.4 0.2 0.1 0.1]

    Reference: Singh et al. Beyond Cosine Decay: On the effectiveness of Infinite Learning Rate Schedule for Continual
    Pre-training. 2025, arXiv 2503.02844.
    """
    start = checks.integer("start", start)
    anneal_steps = checks.integer("anneal_steps", anneal_steps, 1)
    checks.real("end_value", end_value, "(0, inf)")
    return take(schedule, start) + decay("exponential", anneal_steps, end_value)


EXAMPLE = {"peak_value": 0.1, "constant_value": 0.04, "warmup_steps": 3, "cooldown_steps": 5}
register(infinite_schedule, form="schedule", paper=PAPER, example=EXAMPLE)
register(
    anneal_branch,
    form="schedule",
    paper=PAPER,
    example={"schedule": infinite_schedule(**EXAMPLE), "start": 10, "anneal_steps": 4, "end_value": 0.004},
)
