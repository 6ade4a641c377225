"""The score of AlgoPerf: how fast submissions reach the targets of several workloads, relative to the fastest.

t_{s,w}     median over studies of the least time over trials to the first evaluation that reaches the target
            (infinite where it is missed)
r_{s,w}     t_{s,w} / min_s t_{s,w};  infinite above r_max
rho_s(tau)  share of all workloads with r_{s,w} <= tau: the performance profile
B_s         1 / (r_max - 1) integral from 1 to r_max of rho_s = mean over w of max(0, r_max - r_{s,w}) / (r_max - 1)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.types import Scalar

PAPER = Paper("Benchmarking Neural Network Training Algorithms", "Dahl et al.", 2023, "2306.07179")


def time_to_result(times: Any, metric: Any, target: Any, mode: str = "min") -> np.ndarray:
    """The time of the first evaluation that reaches the target.

        t = min {times_i : metric_i <= target},   >= in mode "max";   infinite where there is none

    Args:
      times: of the evaluations, shape (n,) or as `metric`, ascending along the last axis.
      metric: its values, shape (..., n): one trial, or many. NaN reaches nothing.
      target: what is to be reached: a number, or an array that broadcasts against the shape (...) of the trials.
      mode: "min" (default) where the metric shall be at most the target, "max" where at least.

    Returns:
      A float64 array of shape (...).

    Raises:
      ValueError: shapes that do not fit, times that do not ascend.

    Example:
      >>> time_to_result([10, 20, 30], [[3.0, 2.0, 2.5], [3.0, 2.5, 2.4]], 2.0).tolist()
      [20.0, inf]

    Reference: Dahl et al. Benchmarking Neural Network Training Algorithms. 2023, arXiv 2306.07179.
    `gk.diagnostics.steps_to_target` has NaN for what is missed.
    """
    checks.arrays(times=times, metric=metric, target=target)
    checks.choice("mode", mode, ("min", "max"))
    t, values = np.asarray(times, np.float64), np.asarray(metric, np.float64)
    if not values.ndim or not values.shape[-1] or t.shape not in (values.shape[-1:], values.shape):
        raise ValueError(
            f"time_to_result: times must have shape (n,) or that of metric, (..., n), got {t.shape} and {values.shape}"
        )
    if not (np.diff(t, axis=-1) > 0).all():
        raise ValueError("time_to_result: times must ascend along the last axis; sort the evaluations by time")
    goal = np.asarray(target, np.float64)
    if np.isnan(goal).any():
        raise ValueError(f"time_to_result: target must be a number, got {target!r}")
    reached = values <= goal[..., None] if mode == "min" else values >= goal[..., None]
    return np.where(reached, np.broadcast_to(t, values.shape), np.inf).min(-1)


def _ratios(times: Any, r_max: Any, held_out: Sequence[tuple[int, int]]) -> np.ndarray:
    """r of every submission and workload."""
    checks.real("r_max", r_max, "(1, inf)")
    t = np.asarray(times, np.float64)
    if t.ndim not in (2, 4) or not t.size:
        raise ValueError(
            "times must have shape (submissions, workloads, studies, trials) or (submissions, workloads), and not be "
            f"empty, got {t.shape}; write times[:, :, None, None] for one study of one trial"
        )
    if np.isnan(t).any() or (t <= 0).any():
        raise ValueError("times must be > 0, and infinite where the target is missed, got NaN or a number <= 0")
    if t.ndim == 4:
        t = _median(t.min(-1))
    t = _linked(t, held_out)
    # After what is too slow is left out, its variant or base is left out too.
    best = t.min(0)
    t = _linked(np.where(t > r_max * best, np.inf, t), held_out)
    best = t.min(0)
    return np.where(np.isfinite(t), t / np.where(np.isfinite(best), best, 1), np.inf)


def _median(t: np.ndarray) -> np.ndarray:
    """The median along the last axis, infinities included."""
    ordered, n = np.sort(t, -1), t.shape[-1]
    return (ordered[..., (n - 1) // 2] + ordered[..., n // 2]) / 2


def _linked(t: np.ndarray, held_out: Sequence[tuple[int, int]]) -> np.ndarray:
    t = t.copy()
    for pair in held_out:
        base, variant = pair
        for name, index in (("base", base), ("variant", variant)):
            if not 0 <= index < t.shape[1]:
                raise ValueError(
                    f"held_out must be pairs of workloads from 0 to {t.shape[1] - 1}, got {name} {index} in {pair}"
                )
        missed = ~(np.isfinite(t[:, base]) & np.isfinite(t[:, variant]))
        t[missed, base] = t[missed, variant] = np.inf
    return t


def _counted(r: np.ndarray, workloads: Sequence[int] | None) -> np.ndarray:
    if workloads is None:
        return r
    chosen = [*workloads]
    if not chosen or len(set(chosen)) != len(chosen) or not all(0 <= w < r.shape[1] for w in chosen):
        raise ValueError(f"workloads must be different numbers from 0 to {r.shape[1] - 1}, got {workloads}")
    return r[:, chosen]


def performance_profile(
    times: Any,
    taus: Any,
    *,
    r_max: Scalar = 4.0,
    held_out: Sequence[tuple[int, int]] = (),
    workloads: Sequence[int] | None = None,
) -> np.ndarray:
    """The share of workloads on which a submission is within a factor of the fastest.

        rho_s(tau) = (number of w with t_{s,w} <= tau min_s t_{s,w}) / (number of all w)

    Args:
      times: > 0, infinite where the target was missed; of shape (submissions, workloads, studies, trials), or
        (submissions, workloads) where studies and trials are settled.
      taus: factors, shape (k,).
      r_max: times above r_max times the fastest count as missed, > 1. Default 4 (paper).
      held_out: pairs (base workload, its held-out variant): a submission that misses one of them has missed both.
        Default none.
      workloads: which count, such as the base workloads. Default None: all, also those that nobody solved.

    Returns:
      A float64 array of shape (submissions, k).

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> performance_profile([[10.0, 30.0], [20.0, 15.0]], [1.0, 2.0]).tolist()
      [[0.5, 1.0], [0.5, 1.0]]

    Reference: Dahl et al. Benchmarking Neural Network Training Algorithms. 2023, arXiv 2306.07179.
    """
    if workloads is not None:
        checks.sequence(workloads=workloads)
    checks.arrays(times=times, taus=taus)
    checks.sequence(held_out=held_out)
    r = _counted(_ratios(times, r_max, held_out), workloads)
    at = np.asarray(taus, np.float64)
    if at.ndim != 1 or np.isnan(at).any():
        raise ValueError(f"performance_profile: taus must be a vector of numbers, got {taus!r}")
    return (r[:, :, None] <= at).mean(1)


def algoperf_score(
    times: Any,
    *,
    r_max: Scalar = 4.0,
    exact: bool = True,
    num_points: int = 100,
    held_out: Sequence[tuple[int, int]] = (),
    workloads: Sequence[int] | None = None,
) -> np.ndarray:
    """The benchmark score of every submission: the mean height of its performance profile.

        B_s = 1 / (r_max - 1) integral from 1 to r_max of rho_s(tau)
            = mean over w of max(0, r_max - r_{s,w}) / (r_max - 1)

    Args:
      times: as `performance_profile` takes them.
      r_max: > 1. Default 4 (paper).
      exact: whether the integral is exact (default); False: by trapezoids, as in the official code.
      num_points: of the trapezoids, >= 2. Default 100 (official code).
      held_out: pairs (base workload, its held-out variant). Default none.
      workloads: which count. Default None: all.

    Returns:
      A float64 array of shape (submissions,), from 0 to 1: 1 for the fastest on all workloads, 0 where all are missed.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> algoperf_score([[10.0, 30.0], [20.0, 15.0]]).round(3).tolist()  # r is 1, 2 and 2, 1
      [0.833, 0.833]

    Reference: Dahl et al. Benchmarking Neural Network Training Algorithms. 2023, arXiv 2306.07179. The official code
    integrates the steps of the profile by trapezoids on 100 points, up to 0.005 per workload beside the integral.
    """
    checks.arrays(times=times)
    if workloads is not None:
        checks.sequence(workloads=workloads)
    checks.sequence(held_out=held_out)
    checks.switch(exact=exact)
    num_points = checks.integer("num_points", num_points, 2)
    r = _counted(_ratios(times, r_max, held_out), workloads)
    if exact:
        return (np.maximum(0, r_max - r) / (r_max - 1)).mean(1)
    taus = np.linspace(1.0, r_max, num_points)
    return np.trapezoid((r[:, :, None] <= taus).mean(1), taus, axis=1) / (r_max - 1)


SHARED: dict[str, Any] = {"form": "function", "paper": PAPER}
register(time_to_result, **SHARED, example={"times": (1, 2, 3), "metric": (3.0, 2.0, 1.0), "target": 2.0})
register(performance_profile, **SHARED, example={"times": ((10.0, 30.0), (20.0, 15.0)), "taus": (1.0, 2.0)})
register(algoperf_score, **SHARED, example={"times": ((10.0, 30.0), (20.0, 15.0))})
