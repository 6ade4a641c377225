"""The words schedules are written in: `warmup(500, peak) + hold(10_000) + decay("1-sqrt", 2_000)`.

Each makes a schedule of one phase; the equations of the shapes are in the docstring of `phases`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.schedules.phases import Phase, Schedule, ramp, real_array


def warmup(steps: int, peak_value: Any, *, init_value: Any = 0.0, shape: str = "linear") -> Schedule:
    """Rises to a peak.

    Args:
      steps: length of the phase, >= 0.
      peak_value: value reached after `steps` steps; may be traced.
      init_value: value at its first step. Default 0, with which the first update moves nothing;
        `peak_value / steps` wastes no step.
      shape: of the rise; a shape of `phases`. Default "linear".

    Returns:
      A schedule of one phase.

    Raises:
      ValueError: a negative length, or an unknown shape.

    Example:
      >>> schedule = warmup(4, 1.0) + hold(3) + decay("linear", 2)
      >>> print(schedule(jnp.arange(10)))
      [0.   0.25 0.5  0.75 1.   1.   1.   1.   0.5  0.  ]

    Reference: Goyal et al. Accurate, Large Minibatch SGD. 2017, arXiv 1706.02677.
    """
    steps = checks.integer("steps", steps)
    checks.real("peak_value", peak_value)
    return ramp(steps, shape, init_value, peak_value)


def hold(steps: int | None = None, value: Any = None) -> Schedule:
    """Stays at a value.

    Args:
      steps: length of the phase, >= 0. Default None: for ever.
      value: the value; may be traced. Default None: where the phase before ended.

    Returns:
      A schedule of one phase.

    Raises:
      ValueError: a negative length.

    Example:
      >>> print((hold(2, 3.0) + hold())(jnp.arange(4)))
      [3. 3. 3. 3.]

    Reference: Hägele et al. Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations. 2024,
    arXiv 2405.18392.
    """
    steps = checks.integer("steps", steps, optional=True)
    checks.real("value", value, optional=True)
    phase = ramp(steps or 0, "linear", value).phases[0]
    return Schedule((dataclasses.replace(phase, length=steps),))


def decay(shape: str, steps: int, end_value: Any = 0.0, *, init_value: Any = None, half_life: Any = None) -> Schedule:
    """Falls to a last value.

    Args:
      shape: of the fall; a shape of `phases`.
      steps: length of the phase, >= 0.
      end_value: value after it, for ever after where no phase follows. Default 0. May be traced.
      init_value: first value. Default None: where the phase before ended.
      half_life: steps in which the value halves, > 0; for shape "half_life" only, which does not approach `end_value`
        but goes there when the phase is over.

    Returns:
      A schedule of one phase.

    Raises:
      ValueError: a negative length, an unknown shape, "exponential" with an end value that is not positive.

    Example:
      >>> print(decay("1-sqrt", 4, init_value=1.0)(jnp.arange(5)).round(3))
      [1.    0.5   0.293 0.134 0.   ]

    Reference: Hägele et al. Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations. 2024,
    arXiv 2405.18392.
    """
    steps = checks.integer("steps", steps)
    checks.real("end_value", end_value, "(0, inf)" if shape == "exponential" else "(-inf, inf)")
    return ramp(steps, shape, init_value, end_value, half_life)


def take(schedule: Callable[[Any], Any], steps: int) -> Schedule:
    """The first steps of any schedule, so that phases can follow; they start at its value after `steps` steps.

    Args:
      schedule: step -> value, of this library or another.
      steps: how many of its steps, >= 0.

    Returns:
      A schedule of one phase.

    Raises:
      ValueError: a schedule that cannot be called, or a negative number of steps.

    Example:
      >>> import optax
      >>> print((take(optax.constant_schedule(2.0), 3) + decay("linear", 2))(jnp.arange(6)))
      [2. 2. 2. 2. 1. 0.]

    Reference: none.
    """
    checks.function("schedule", schedule)
    steps = checks.integer("steps", steps)

    def at(since: jax.Array, before: Any) -> jax.Array:
        del before
        return real_array(schedule(jnp.clip(since, 0, steps)))

    return Schedule((Phase(steps, at, lambda _: real_array(schedule(steps))),))


def repeat(schedule: Schedule, times: int | None = None) -> Schedule:
    """A schedule over and over again.

    Args:
      schedule: what is repeated; it has an end, which is never reached inside a cycle.
      times: how often, >= 1. Default None: for ever.

    Returns:
      A schedule of one phase.

    Raises:
      ValueError: a schedule that is empty or has no end, or `times` < 1.

    Example:
      >>> print(repeat(decay("linear", 2, init_value=1.0))(jnp.arange(5)))
      [1.  0.5 1.  0.5 1. ]

    Reference: Loshchilov, Hutter. SGDR: Stochastic Gradient Descent with Warm Restarts. 2016, arXiv 1608.03983.
    """
    times = checks.integer("times", times, 1, optional=True)
    length = schedule.length
    if not length:
        raise ValueError(f"a schedule can be repeated if it has an end and is not empty, its length is {length}")

    def at(since: jax.Array, before: Any) -> jax.Array:
        position = jnp.maximum(since, 0) if isinstance(length, int) else real_array(jnp.maximum(since, 0))
        return schedule.at(position % length, before)

    return Schedule((Phase(None if times is None else times * length, at, schedule.end),))
