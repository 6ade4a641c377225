"""The learning rates that the losses of a range test suggest."""

from typing import Any, NamedTuple

import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register

PAPER = Paper("A disciplined approach to neural network hyper-parameters: Part 1", "Smith", 2018, "1803.09820")


class Suggestion(NamedTuple):
    """What the losses of a range test suggest.

    Attributes:
      steepest: the learning rate at which the smoothed loss falls fastest.
      tenth: a tenth of the learning rate at which it is smallest.
      stop: the number of steps before the loss became too large; all, where it did not.
      smoothed: the smoothed losses of these steps.
    """

    steepest: float
    tenth: float
    stop: int
    smoothed: np.ndarray


def suggest_learning_rate(
    learning_rates: Any, losses: Any, *, smoothing: float = 0.98, stop_factor: float = 4.0
) -> Suggestion:
    """The learning rates that the losses of a range test suggest.

    Equations, for losses L_i of steps i = 0, 1, ... with rising learning rates, and b = smoothing:

        s_i      = b s_{i-1} + (1 - b) L_i,   shat_i = s_i / (1 - b^(i+1))
        stop     = the first i with shat_i > stop_factor min_{j<=i} shat_j, or with a loss that is not finite
        steepest = the learning rate at which d shat / d log(learning rate) is smallest
        tenth    = a tenth of the learning rate at which shat is smallest

    Args:
      learning_rates: learning rates > 0 of the steps, rising, shape (n,), n >= 3: `gk.schedules.lr_range_test`.
      losses: the loss of every step, shape (n,). A loss that is not finite ends the test.
      smoothing: b, decay of the running mean of losses, in [0, 1). Default 0.98 (common practice).
      stop_factor: factor of the smallest smoothed loss above which the test ends, > 1. Default 4 (common practice).
        Shift losses that may be negative first.

    Returns:
      `Suggestion` (steepest, tenth, stop, smoothed).

    Raises:
      ValueError: shapes that do not fit, rates that do not rise, an argument outside its range, fewer than three losses
        before the test is over.

    Example:
      >>> rates = np.geomspace(1e-4, 10, 101)
      >>> losses = 1 - 0.9 * rates / (rates + 0.01) + rates**2  # falls around 0.01, and grows from 0.2 on
      >>> found = suggest_learning_rate(rates, losses, smoothing=0.0)
      >>> round(found.steepest, 3), round(found.tenth, 3)
      (0.01, 0.016)

    Reference: Smith. A disciplined approach to neural network hyper-parameters: Part 1. 2018, arXiv 1803.09820, for the
    test; the two suggestions, the smoothing and the end of the test are common practice.
    """
    checks.arrays(learning_rates=learning_rates, losses=losses)
    checks.real("smoothing", smoothing, "[0, 1)")
    checks.real("stop_factor", stop_factor, "(1, inf)")
    rates, L = np.asarray(learning_rates, np.float64), np.asarray(losses, np.float64)
    if rates.ndim != 1 or rates.shape != L.shape or len(rates) < 3:
        raise ValueError(
            "suggest_learning_rate: learning_rates and losses must be one number per step, three steps at least, got "
            f"shapes {rates.shape} and {L.shape}"
        )
    if not ((rates > 0).all() and (np.diff(rates) > 0).all()):
        raise ValueError("suggest_learning_rate: learning_rates must be positive and rise from step to step")
    finite = np.isfinite(L)
    known = L[: len(L) if finite.all() else int(np.argmin(finite))]
    s, smoothed = 0.0, np.empty(len(known))
    for i, loss in enumerate(known):
        s = smoothing * s + (1 - smoothing) * loss
        smoothed[i] = s / (1 - smoothing ** (i + 1))
    over = smoothed > stop_factor * np.minimum.accumulate(smoothed)
    stop = int(np.argmax(over)) if over.any() else len(known)
    if stop < 3:
        raise ValueError(
            f"suggest_learning_rate: the loss was too large after {stop} steps, got {L[: stop + 1]}; three steps at "
            "least must train: start the test at a smaller learning rate"
        )
    smoothed = smoothed[:stop]
    slope = np.gradient(smoothed, np.log(rates[:stop]))
    return Suggestion(float(rates[slope.argmin()]), float(rates[smoothed.argmin()] / 10), stop, smoothed)


register(
    suggest_learning_rate,
    form="function",
    paper=PAPER,
    example={"learning_rates": (0.01, 0.1, 1.0), "losses": (3.0, 1.0, 2.0)},
)
