"""How many steps a run takes to a target, and how many a larger batch saves."""

from typing import Any, NamedTuple

import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.types import Scalar

PAPER = Paper(
    "Measuring the Effects of Data Parallelism on Neural Network Training", "Shallue et al.", 2018, "1811.03600"
)


def steps_to_target(steps: Any, metric: Any, target: Any, mode: str = "min") -> np.ndarray:
    """The first step at which a metric reaches its target.

    Args:
      steps: the steps at which the metric was measured, shape (n,), ascending.
      metric: its values, shape (..., n): one curve, or many. NaN never reaches the target.
      target: the target value.
      mode: "min" (default): the metric must be at most the target; "max": at least.

    Returns:
      A float64 array of shape (...): the step, or NaN for a curve that does not reach the target.

    Raises:
      ValueError: shapes that do not fit, steps that do not ascend, a target that is no number.

    Example:
      >>> print(steps_to_target([10, 20, 30], [[3.0, 2.0, 1.0], [3.0, 2.5, 2.4]], 2.0))
      [20. nan]

    Reference: Shallue et al. Measuring the Effects of Data Parallelism on Neural Network Training. 2018, arXiv
    1811.03600. Tune learning rate, momentum and schedule for every batch size; take the trial with the fewest steps, of
    those that did not diverge, where the optimum is inside the search space.
    """
    checks.arrays(steps=steps, metric=metric)
    checks.real("target", target)
    checks.choice("mode", mode, ("min", "max"))
    t, curves = np.asarray(steps, np.float64), np.asarray(metric, np.float64)
    if t.ndim != 1 or not t.size or curves.shape[-1:] != t.shape:
        raise ValueError(f"steps must be (n,) and metric (..., n), got {t.shape} and {curves.shape}")
    if not (np.diff(t) > 0).all():
        raise ValueError(f"steps must be numbers that ascend, got {t}")
    reached = curves <= target if mode == "min" else curves >= target
    return np.where(reached.any(-1), t[reached.argmax(-1)], np.nan)


class BatchScaling(NamedTuple):
    """How the number of steps falls with the batch size.

    Attributes:
      batches: the batch sizes that reached the target, ascending.
      steps: the fewest steps of each.
      slopes: the slopes from each batch size to the next; -1 is perfect scaling.
      perfect_batch: the largest batch size up to which all scale perfectly from the smallest.
      max_useful_batch: the smallest batch size with the fewest steps; a larger one saves nothing.
    """

    batches: np.ndarray
    steps: np.ndarray
    slopes: np.ndarray
    perfect_batch: float
    max_useful_batch: float


def batch_scaling(batch_sizes: Any, steps: Scalar, *, tolerance: Scalar = 0.1) -> BatchScaling:
    """The batch sizes up to which scaling is perfect, and up to which a larger batch saves steps at all.

    Equations:

        S(B)             = fewest steps to the target of all trials with batch size B
        slope            = (log S(B') - log S(B)) / (log B' - log B)       from one batch size to the next
        perfect_batch    = the largest B with S(b) b <= (1 + tolerance) S(b_0) b_0 for all b <= B, b_0 the smallest
        max_useful_batch = the smallest B with S(B) <= (1 + tolerance) min S

    The slope is -1 with perfect scaling (twice the batch takes half the steps), 0 with maximal data parallelism (a
    larger batch saves nothing), and between them with diminishing returns.

    Args:
      batch_sizes: B > 0 of each trial, shape (n,).
      steps: steps > 0 to the target of each trial, as `steps_to_target` gives them; those that are NaN or infinite are
        left out. Of several trials of one batch size the best counts.
      tolerance: relative difference of numbers of steps that counts as equal, >= 0. Default 0.1.

    Returns:
      Batch sizes, steps and slopes as float64 arrays, and the ends of perfect and of any scaling.

    Raises:
      ValueError: lengths that differ, a number <= 0, no trial that got to the target.

    Example:
      >>> found = batch_scaling([8, 16, 32, 64], [800, 400, 300, 300])
      >>> found.slopes.round(2).tolist(), found.perfect_batch, found.max_useful_batch
      ([-1.0, -0.42, 0.0], 16.0, 32.0)

    Reference: Shallue et al. Measuring the Effects of Data Parallelism on Neural Network Training. 2018, arXiv
    1811.03600, which shows curves; the tolerance is added by this library. `fit_steps_examples` fits the common formula
    S = S_min (1 + B_crit / B).
    """
    checks.arrays(batch_sizes=batch_sizes, steps=steps)
    checks.real("tolerance", tolerance, "[0, inf)")
    B, S = (np.asarray(x, np.float64) for x in (batch_sizes, steps))
    if B.ndim != 1 or B.shape != S.shape:
        raise ValueError(f"batch_sizes and steps must be vectors of one length, got shapes {B.shape} and {S.shape}")
    B, S = B[np.isfinite(S)], S[np.isfinite(S)]
    if not B.size or not (B > 0).all() or not (S > 0).all():
        raise ValueError(
            "batch_sizes and steps must be positive, and at least one trial must have reached the target, got "
            f"{B} and {S}"
        )
    known, which = np.unique(B, return_inverse=True)
    best = np.full(known.shape, np.inf)
    np.minimum.at(best, which, S)
    share = best * known <= (1 + tolerance) * best[0] * known[0]
    perfect = known[np.logical_and.accumulate(share)][-1]
    useful = known[best <= (1 + tolerance) * best.min()][0]
    slopes = np.diff(np.log(best)) / np.diff(np.log(known))
    return BatchScaling(known, best, slopes, float(perfect), float(useful))


SHARED: dict[str, Any] = {
    "form": "function",
    "paper": PAPER,
}
register(steps_to_target, **SHARED, example={"steps": (1, 2, 3), "metric": (3.0, 2.0, 1.0), "target": 2.0})
register(batch_scaling, **SHARED, example={"batch_sizes": (8, 16, 32), "steps": (800, 400, 300)})
