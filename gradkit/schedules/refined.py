"""Linear decay, and the schedule that is refined from the gradient norms of a first run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.phases import Phase, Schedule, real_array
from gradkit.types import Scalar

PAPER = Paper(
    "When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement", "Defazio et al.", 2023, "2310.07831"
)
POWERS = {"l2": 2, "l1": 1}


def linear_decay(peak_value: Scalar, *, total_steps: int, warmup_steps: int = 0, include_zero: bool = True) -> Schedule:
    """A linear decay to zero: the schedule that is best in the worst case for the last iterate.

    Equations of update t = step + 1 of T = total_steps, with W = warmup_steps:

        value = peak t / W                                  t <= W
              = peak (T - t) / (T - W)                      t > W
              = peak (T - step) / (T - W)                   t > W, without include_zero

    Args:
      peak_value: peak, >= 0; may be traced.
      total_steps: T > W; afterwards the learning rate is 0.
      warmup_steps: W >= 0. Default 0.
      include_zero: whether the last update has the learning rate 0, so that the first of the decay is one step below
        the peak (the paper). Default True. False wastes no update: from the peak to peak / (T - W).

    Returns:
      A schedule step -> value. No state, no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> print(linear_decay(1.0, total_steps=4)(jnp.arange(5)))
      [0.75 0.5  0.25 0.   0.  ]
      >>> print(linear_decay(1.0, total_steps=4, include_zero=False)(jnp.arange(5)))
      [1.   0.75 0.5  0.25 0.  ]

    Reference: Defazio et al. When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement. 2023, arXiv
    2310.07831.
    """
    checks.real("peak_value", peak_value, "[0, inf)")
    checks.switch(include_zero=include_zero)
    warmup_steps = checks.integer("warmup_steps", warmup_steps)
    total_steps = checks.integer("total_steps", total_steps, warmup_steps + 1)
    made = 1 if include_zero else 0

    def at(since: jax.Array, before: Any) -> jax.Array:
        del before
        peak = real_array(peak_value)
        left = real_array(jnp.clip(total_steps - made - since, 0, total_steps - warmup_steps))
        fall = peak * (left / (total_steps - warmup_steps))
        rise = peak * (real_array(jnp.clip(since, 0, warmup_steps) + 1) / max(warmup_steps, 1))
        return jnp.where(since < warmup_steps, rise, fall)

    return Schedule((Phase(total_steps, at, lambda _: 0.0),))


def refined_schedule(
    grad_norms: Any, *, norm: str = "l2", smoothing: float = 0.1, total_steps: int | None = None
) -> np.ndarray:
    """The schedule for a second run, from the gradient norms of a first.

    Equations, with the norm G_t of the gradient of step t = 1, ..., T of the first run:

        Ghat = median filter of G over a window of 2 floor(floor(smoothing T) / 2) + 1 steps
        w_t = Ghat_t^-2                                     "l2", for SGD
        w_t = Ghat_t^-1                                     "l1", for Adam and similar methods
        s_t = w_t sum_{p > t} w_p,   divided by its maximum

    The first run has a linear decay and `gk.record_norms` in its chain; the second `array_schedule(peak_value *
    multipliers)`. It needs no warm-up: where gradients are large, multipliers are small.

    Args:
      grad_norms: norms > 0 of the gradients of the first run, one per step, shape (n,).
      norm: which norms they are: "l2" (default) for SGD, "l1" for Adam and similar methods.
      smoothing: window of the median filter as a fraction of the steps, in [0, 1). Default 0.1 (paper).
      total_steps: steps of the second run, >= 1. Default None: as many as there are norms; otherwise they are
        interpolated first.

    Returns:
      A float64 array of one multiplier per step, in [0, 1]; the largest is 1, the last 0.

    Raises:
      ValueError: norms that are not a vector, not positive or not finite; an argument outside its range.

    Example:
      >>> refined_schedule([2.0, 2.0, 2.0, 2.0, 2.0]).round(4).tolist()  # constant norms: a linear decay
      [1.0, 0.75, 0.5, 0.25, 0.0]

    Reference: Defazio et al. When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement. 2023, arXiv
    2310.07831. The released code divides by the last weight, not by the sum of the weights; the division by the maximum
    removes either factor. A linear decay is 1 - t / T; divided by its maximum, 1 - 1 / T, it begins at 1.
    """
    checks.choice("norm", norm, list(POWERS))
    checks.real("smoothing", smoothing, "[0, 1)")
    total_steps = checks.integer("total_steps", total_steps, 1, optional=True)
    G = np.asarray(grad_norms, np.float64)
    if G.ndim != 1 or not G.size:
        raise ValueError(
            f"refined_schedule: grad_norms must be one norm per step, an array of shape (n,), got shape {G.shape}; "
            "after gk.record_norms(total_steps), write state.norms"
        )
    if not (np.isfinite(G).all() and (G > 0).all()):
        step = int(np.argmin(np.isfinite(G) & (G > 0)))
        raise ValueError(
            f"refined_schedule: grad_norms must be positive and finite, got {G[step]} at step {step}; give only the "
            "norms of the steps that were made: grad_norms[:steps]"
        )
    if total_steps is not None:
        G = np.interp(np.linspace(0, 1, total_steps), np.linspace(0, 1, len(G)), G)
    # Dividing by the largest norm first keeps squares and their inverses from overflow.
    w = (G.max() / median_filter(G, 2 * (int(smoothing * len(G)) // 2) + 1)) ** POWERS[norm]
    w = w / w.max()
    later = np.concatenate([np.cumsum(w[:0:-1])[::-1], [0.0]])
    s = w * later
    return s / s.max() if len(s) > 1 else np.zeros(1)


def median_filter(values: np.ndarray, window: int) -> np.ndarray:
    """The running median; the end is padded by reflection, and the start by repeating the first value."""
    if window == 1:
        return values
    half = window // 2
    padded = np.pad(np.pad(values, (0, 2 * window), mode="reflect"), (half, half), mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=-1)[: len(values)]


register(linear_decay, form="schedule", paper=PAPER, example={"peak_value": 0.1, "total_steps": 20, "warmup_steps": 3})
register(
    refined_schedule,
    form="function",
    paper=PAPER,
    golden=("step_size/refined_schedule",),
    example={"grad_norms": (3.0, 2.0, 1.0, 1.0)},
)
