"""How a run is extended at the same learning rate, by convex theory."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gradkit import checks
from gradkit.catalogue import register
from gradkit.diagnostics.convex_schedule_bound import PAPER, optimal_base_rate
from gradkit.types import ScalarOrSchedule

FALLS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda p: 1 - p,
    "1-sqrt": lambda p: 1 - np.sqrt(p),
}


def _check(total_steps: Any, new_total_steps: Any, cooldown: Any, shape: Any) -> tuple[int, int]:
    total_steps = checks.integer("total_steps", total_steps, 2)
    new_total_steps = checks.integer("new_total_steps", new_total_steps, total_steps)
    checks.real("cooldown", cooldown, "(0, 1]")
    checks.choice("shape", shape, list(FALLS))
    return total_steps, new_total_steps


def _rates(steps: int, cooldown: float, shape: str) -> np.ndarray:
    """A constant learning rate of 1, then a decay over a fraction of the steps that is 0 after the last."""
    length = cooldown * steps
    return FALLS[shape](np.clip(np.arange(steps) - (steps - length), 0, None) / length)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """The zero of an increasing function between two points; where there is none, the end with the smaller value."""
    if function(low) >= 0:
        return low
    if function(high) <= 0:
        return high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if function(middle) > 0 else (middle, high)
    return (low + high) / 2


def extend_cooldown(total_steps: int, new_total_steps: int, *, cooldown: float = 0.2, shape: str = "linear") -> float:
    """The fraction of a longer run that must decay, so that the tuned learning rate of the shorter stays the best.

    Equations, with the best base learning rate gamma*(T, c) of `optimal_base_rate` for a schedule of T steps whose last
    fraction c decays; c_1 is the solution of

        gamma*(T_1, c_1) = gamma*(T_0, c_0)

    With the same fraction it would fall with the number of steps, gamma* ~ 1 / sqrt(T).

    Args:
      total_steps: T_0 >= 2, steps of the run whose learning rate was tuned.
      new_total_steps: T_1 >= T_0.
      cooldown: c_0, fraction of T_0 that decays, in (0, 1]. Default 0.2.
      shape: of the decay, "linear" (default) or "1-sqrt".

    Returns:
      c_1 in [c_0, 1]. With 1 the decay begins at the first step: from about four times the steps on the learning rate
      must be lowered as well.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> [round(extend_cooldown(200, steps), 2) for steps in (200, 300, 400, 800)]
      [0.2, 0.43, 0.62, 1.0]

    Reference: Schaipp et al. The Surprising Agreement Between Convex Optimization Theory and Learning-Rate Scheduling
    for Large Model Training. 2025, arXiv 2501.18965.
    """
    total_steps, new_total_steps = _check(total_steps, new_total_steps, cooldown, shape)
    tuned = optimal_base_rate(_rates(total_steps, cooldown, shape)).base_rate
    return _root(
        lambda c: float(optimal_base_rate(_rates(new_total_steps, c, shape)).base_rate - tuned), float(cooldown), 1.0
    )


def extend_second_stage(
    total_steps: int, new_total_steps: int, *, cooldown: float = 0.2, shape: str = "linear"
) -> float:
    """The factor of a second constant stage, with which the tuned learning rate of a shorter run stays the best.

    Equations, with the best base learning rate gamma* of `optimal_base_rate`, for the schedule with a second stage:

        rate = 1                      for the first (1 - c_0) T_0 steps
        rate = factor                 then; with a decay over the last c_0 T_1 steps
        gamma*(with factor) = gamma*(T_0, c_0)

    Args:
      total_steps: T_0 >= 2, steps of the run whose learning rate was tuned; the second stage starts where its cooldown
        did.
      new_total_steps: T_1 >= T_0.
      cooldown: c_0, fraction of the steps that decays, in both runs, in (0, 1]. Default 0.2.
      shape: of the decay, "linear" (default) or "1-sqrt".

    Returns:
      The factor, in (0, 1].

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> [round(extend_second_stage(200, steps), 2) for steps in (200, 300, 400, 800)]
      [1.0, 0.65, 0.55, 0.39]

    Reference: Schaipp et al. The Surprising Agreement Between Convex Optimization Theory and Learning-Rate Scheduling
    for Large Model Training. 2025, arXiv 2501.18965.
    """
    total_steps, new_total_steps = _check(total_steps, new_total_steps, cooldown, shape)
    tuned = optimal_base_rate(_rates(total_steps, cooldown, shape)).base_rate
    first, rates = np.arange(new_total_steps) < (1 - cooldown) * total_steps, _rates(new_total_steps, cooldown, shape)

    def above(factor: float) -> float:
        return float(tuned - optimal_base_rate(np.where(first, rates, factor * rates)).base_rate)

    # Searched from 1 downwards: a factor close to 0 only extends the first stage, and also gives a small base rate.
    low = 1.0
    while above(low) > 0 and low > 1e-3:
        low *= 0.8
    return _root(above, low, min(low / 0.8, 1.0))


def transfer_base_rate(rate: ScalarOrSchedule, from_schedule: Any, to_schedule: ScalarOrSchedule) -> Any:
    """The base learning rate for another schedule, from the one that was tuned with this schedule.

    Equations, with the best base learning rate gamma* of `optimal_base_rate`:

        gamma_new = gamma_old gamma*(to_schedule) / gamma*(from_schedule)

    Args:
      rate: gamma_old >= 0, tuned with `from_schedule`; may be traced.
      from_schedule: its learning rates at the base learning rate 1, one per step, shape (T,).
      to_schedule: those of the other schedule, shape (T',).

    Returns:
      gamma_new.

    Raises:
      ValueError: a negative learning rate, or schedules that `optimal_base_rate` does not take.

    Example:
      >>> t = np.arange(400)
      >>> print(round(float(transfer_base_rate(0.1, np.ones(400), 1 - t / 400)), 4))  # a decay takes a larger rate
      0.2727

    Reference: Schaipp et al. The Surprising Agreement Between Convex Optimization Theory and Learning-Rate Scheduling
    for Large Model Training. 2025, arXiv 2501.18965.
    """
    checks.arrays(from_schedule=from_schedule)
    checks.real("rate", rate, "[0, inf)")
    old, new = (optimal_base_rate(rates).base_rate for rates in (from_schedule, to_schedule))
    return rate * (new / old)


register(extend_cooldown, form="function", paper=PAPER, example={"total_steps": 100, "new_total_steps": 200})
register(extend_second_stage, form="function", paper=PAPER, example={"total_steps": 100, "new_total_steps": 200})
register(
    transfer_base_rate,
    form="function",
    paper=PAPER,
    example={"rate": 0.1, "from_schedule": (1.0, 1.0, 1.0), "to_schedule": (1.0, 0.7, 0.4)},
)
