"""How a run is made longer at the same learning rate, as convex theory says.

The best base rate of warmup-stable-decay falls with the number of steps, gamma* ~ 1 / sqrt(T). A run that was tuned for
T_0 steps and goes on to T_1 keeps its rate where gamma*(T_1) = gamma*(T_0), by one of two changes:

    a longer cooldown    the fraction c_1 of T_1 that decays, in place of c_0 of T_0
    a second stage       from (1 - c_0) T_0 on a constant rate `factor` times as large, then a decay over c_0 T_1

From one schedule to another the rate is transferred by  gamma_new = gamma_old gamma*(new) / gamma*(old).
"""

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
    """A constant rate of 1, then a decay over a fraction of the steps that is 0 after the last."""
    length = cooldown * steps
    return FALLS[shape](np.clip(np.arange(steps) - (steps - length), 0, None) / length)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where an increasing function is 0, between two points; the nearer end where it is nowhere 0."""
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

    Equations: at the head of this file.

    Args:
      total_steps: T_0 >= 2, steps of the run whose rate was tuned.
      new_total_steps: T_1 >= T_0.
      cooldown: c_0, fraction of T_0 that decays, in (0, 1]. Default 0.2.
      shape: of the decay, "linear" (default) or "1-sqrt".

    Returns:
      c_1 in [c_0, 1]. 1, a decay from the first step, is the most there is: from about four times the steps on the rate
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

    Equations: at the head of this file.

    Args:
      total_steps: T_0 >= 2, steps of the run whose rate was tuned; the second stage starts where its cooldown did.
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

    # From 1 downwards: a factor next to 0 only pads the first stage, and gives a small base rate once more.
    low = 1.0
    while above(low) > 0 and low > 1e-3:
        low *= 0.8
    return _root(above, low, min(low / 0.8, 1.0))


def transfer_base_rate(rate: ScalarOrSchedule, from_schedule: Any, to_schedule: ScalarOrSchedule) -> Any:
    """The base rate for another schedule, from the one that was tuned with this schedule.

    Equations: the last at the head of this file.

    Args:
      rate: gamma_old >= 0, tuned with `from_schedule`; may be traced.
      from_schedule: its rates at the base rate 1, one per step, shape (T,).
      to_schedule: those of the other schedule, shape (T',).

    Returns:
      gamma_new.

    Raises:
      ValueError: a negative rate, or schedules that `optimal_base_rate` does not take.

    Example:
      >>> t = np.arange(400)
      >>> print(round(float(transfer_base_rate(0.1, np.ones(400), 1 - t / 400)), 4))  # a decay takes a larger rate
      0.2727

    Reference: Schaipp et al. The Surprising Agreement Between Convex Optimization Theory and Learning-Rate Scheduling
    for Large Model Training. 2025, arXiv 2501.18965.
    """
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
