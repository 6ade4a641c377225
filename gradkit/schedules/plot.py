"""The curve of a schedule as characters, for a terminal."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gradkit import checks

BLOCKS = " ▁▂▃▄▅▆▇█"
# Of one curve: what is drawn is read off at no more steps than this.
MOST_POINTS = 4096


def curve(schedule: Callable[[Any], Any], steps: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Steps and the values there: every step of a short schedule, and evenly spread steps of a long one.

    Args:
      schedule: step -> value.
      steps: how many, from 0 on, >= 1. Default None: the length of a `Schedule`.

    Raises:
      ValueError: no number of steps for a schedule without an end; a value that is not a number per step.

    >>> [x.tolist() for x in curve(lambda step: 2.0 * step, 3)]
    [[0, 1, 2], [0.0, 2.0, 4.0]]
    """
    checks.function("schedule", schedule)
    steps = checks.integer("steps", steps, 1, optional=True)
    if steps is None:
        length = getattr(schedule, "length", None)
        if length is None:
            raise ValueError("plot: steps must be given for a schedule that has no end, such as steps=1000")
        steps = math.ceil(length) + 1
    at = np.unique(np.linspace(0, steps - 1, min(steps, MOST_POINTS)).astype(np.int64))
    try:
        values = np.asarray(schedule(at), np.float64)
    except (TypeError, ValueError):
        # A schedule of a user's own may be written for one step at a time.
        values = np.asarray([])
    if values.shape != at.shape:
        values = np.asarray([schedule(int(step)) for step in at], np.float64)
    if values.shape != at.shape:
        raise ValueError(f"plot: schedule must give one number per step, got values of shape {values.shape[1:]}")
    return at, values


def plot(schedule: Callable[[Any], Any], steps: int | None = None, *, width: int = 72, height: int = 10) -> str:
    """The curve of a schedule, drawn with characters.

    Args:
      schedule: step -> value, of this library or another.
      steps: how many are drawn, from 0 on, >= 1. Default None: the length of a `Schedule`, and the step after it.
      width: of the drawing in characters, >= 20. Default 72.
      height: of the drawing in lines, >= 2. Default 10.

    Returns:
      Lines of characters. A column is the mean over its steps; the axis begins at 0 where no value is negative.
      `gk.training.save_plot` draws the same as a picture.

    Raises:
      ValueError: no number of steps for a schedule without an end; a size that is too small.

    Example:
      >>> from gradkit.schedules import decay, hold, warmup
      >>> print(plot(warmup(100, 0.02) + hold(200) + decay("1-sqrt", 100), width=40, height=3))
      0.02 ┤      ▂▅█████████████████▆
           │   ▂▄▇█████████████████████▄▂
         0 ┤▁▄▇███████████████████████████▆▄▂▁
           └──────────────────────────────────
            0                              400

    Reference: none.
    """
    width, height = checks.integer("width", width, 20), checks.integer("height", height, 2)
    at, values = curve(schedule, steps)
    low, high = min(0.0, _finite(values, np.min)), _finite(values, np.max)
    if high <= low:
        high = low + 1
    labels = [f"{end + 0.0:.3g}" for end in (high, low)]
    margin = max(map(len, labels)) + 2
    columns = width - margin
    # Of few steps a column is part of one; of many, several are in one column.
    first = np.arange(columns) * len(at) // columns
    last = np.maximum((np.arange(columns) + 1) * len(at) // columns, first + 1)
    means = np.array([values[a:b].mean() for a, b in zip(first, last, strict=True)])
    filled = np.clip(np.nan_to_num((means - low) / (high - low)), 0, 1) * height
    lines = []
    for row in range(height):
        beneath = height - 1 - row
        eighths = np.rint(np.clip(filled - beneath, 0, 1) * 8).astype(int)
        label = labels[0] if row == 0 else labels[1] if row == height - 1 else ""
        tick = "┤" if label else "│"
        lines.append(f"{label:>{margin - 2}} {tick}" + "".join(BLOCKS[k] for k in eighths).rstrip())
    lines.append(" " * (margin - 1) + "└" + "─" * columns)
    lines.append(" " * margin + f"0{at[-1]:>{columns - 1}}")
    return "\n".join(lines)


def _finite(values: np.ndarray, function: Callable[[np.ndarray], Any]) -> float:
    known = values[np.isfinite(values)]
    return float(function(known)) if known.size else 0.0
