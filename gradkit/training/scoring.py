"""How a race is scored: pure functions on arrays of numbers.

Steps-to-target is read off the curve of the metric; a miss is infinity and never dropped. A method is
judged at the rate with the best median over seeds, so its tuning is part of its score.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gradkit import checks
from gradkit.diagnostics import steps_to_target


def steps_or_infinity(curves: np.ndarray, steps: np.ndarray, target: float) -> np.ndarray:
    """The first step at which the metric is at or below the target; infinity where it never is.

    >>> curves = np.array([[3.0, 1.0, 2.0], [3.0, np.nan, 2.0]])
    >>> steps_or_infinity(curves, np.array([10, 20, 30]), 1.0)
    array([20., inf])
    """
    return np.nan_to_num(steps_to_target(steps, curves, target), nan=np.inf)


def best_point(steps: np.ndarray, finals: np.ndarray) -> int:
    """The grid point with the smallest median of steps-to-target over seeds.

    Ties, and a method that misses everywhere, are decided by misses, then by the median final metric,
    where a diverged run counts as infinite.

    Args:
      steps: steps-to-target, (grid, seeds).
      finals: last metric of each run, (grid, seeds).
    """
    finals = np.where(np.isfinite(finals), finals, np.inf)
    columns = (np.median(finals, -1), np.isinf(steps).sum(-1), np.median(steps, -1))
    return int(np.lexsort(columns)[0])


def robustness(steps: np.ndarray, factor: float = 2.0) -> int:
    """How many grid points reach the target within `factor` of the best one, by medians over seeds.

    Args:
      steps: steps-to-target, (grid, seeds).
      factor: what still counts as near the best. Default 2.

    Returns:
      A count; 0 where every median is a miss.

    Example:
      >>> robustness(np.array([[np.inf], [80.0], [40.0], [81.0]]))
      2
    """
    medians = np.median(steps, -1)
    return int(np.sum(np.isfinite(medians) & (medians <= factor * medians.min())))


def separated(best: np.ndarray, other: np.ndarray, ratio: float) -> bool:
    """Whether `best` is faster than `other` by more than the seeds would explain.

    True where the medians differ by more than `ratio`, or where five or more seeds, paired, all agree (a
    sign test: one chance in 32).

    Args:
      best: steps-to-target of the faster method, (seeds,).
      other: those of the slower, same seeds.
      ratio: what two medians differ by from one draw of seeds to the next; a property of the workload.
    """
    first, second = np.median(best), np.median(other)
    if not np.isfinite(first) or first == second:
        return False
    return bool(second > ratio * first or (len(best) >= 5 and np.all(np.asarray(other) > np.asarray(best))))


class Profile(NamedTuple):
    """A performance profile.

    Attributes:
      tau: ratios to the best method of a workload.
      share: method -> share of workloads on which it is within tau of the best, one number per tau.
      area: method -> mean of that share over tau in [1, largest tau]; 1 is best everywhere.
    """

    tau: np.ndarray
    share: dict[str, np.ndarray]
    area: dict[str, float]


def performance_profile(scores: Mapping[str, Sequence[float]], largest: float = 4.0, points: int = 301) -> Profile:
    """On what share of workloads each method is within a factor tau of the best one.

    Args:
      scores: method -> steps (or seconds) to target, one number per workload; infinity for a miss.
      largest: the largest tau, > 1. Default 4 (AlgoPerf).
      points: how finely tau is cut.

    Raises:
      ValueError: a largest tau that is not above 1.

    Example:
      >>> profile = performance_profile({"a": [10, 10], "b": [10, np.inf]})
      >>> round(profile.area["a"], 2), round(profile.area["b"], 2)
      (1.0, 0.5)

    Reference: Dolan, Moré. Benchmarking optimization software with performance profiles. 2002, arXiv
    cs/0102001; Dahl et al. Benchmarking Neural Network Training Algorithms. 2023, arXiv 2306.07179.
    """
    checks.real("largest", largest, "(1, inf)")
    tau = np.linspace(1.0, largest, points)
    table = np.array([list(row) for row in scores.values()], float)
    best = table.min(0)
    # A workload that nobody solves says nothing about anybody: it counts against all.
    ratios = np.where(np.isfinite(table), table / np.where(np.isfinite(best), best, 1.0), np.inf)
    shares = (ratios[:, :, None] <= tau[None, None, :] + 1e-12).mean(1)
    share = dict(zip(scores, shares, strict=True))
    # The area of steps, exactly: trapezoids between points are beside it.
    areas = (np.maximum(0, largest - ratios) / (largest - 1.0)).mean(1)
    return Profile(tau, share, dict(zip(scores, areas.tolist(), strict=True)))
