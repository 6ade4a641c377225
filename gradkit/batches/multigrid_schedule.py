"""Multigrid: video models trained on clips of changing shape, with larger batches for smaller clips."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gradkit import checks
from gradkit.catalogue import Paper, register

HALF = math.sqrt(0.5)


class MultigridRow(NamedTuple):
    """One long shape: the stage of the learning rate, its batch relative to that of the full shape, the frames, the
    crop, and the epoch at which it ends."""

    stage: int
    batch_factor: int
    frames: int
    crop: int
    end_epoch: int


class MultigridPlan(NamedTuple):
    """The shapes and learning rates of a run.

    Attributes:
      rows: the long shapes in order.
      boundaries: epochs at which the learning rates begin.
      rates: learning rates, as multiples of the learning rate of the full shape at the start.
      max_epoch: the number of epochs.
      shape: (epoch, step) -> (batch, frames, crop) of that step, Python integers.
    """

    rows: tuple[MultigridRow, ...]
    boundaries: tuple[int, ...]
    rates: tuple[float, ...]
    max_epoch: int
    shape: Callable[[int, int], tuple[int, int, int]]


def multigrid_schedule(
    batch_size: int,
    *,
    frames: int,
    crop: int,
    steps: Sequence[int],
    max_epoch: int,
    gamma: float = 0.1,
    epoch_factor: float = 1.5,
    short_cycle: bool = True,
    long_factors: Sequence[tuple[float, float]] = ((0.25, HALF), (0.5, HALF), (0.5, 1.0), (1.0, 1.0)),
    short_factors: tuple[float, float] = (0.5, HALF),
) -> MultigridPlan:
    """Plans a multigrid run from the schedule of an ordinary one.

    Equations:

        m = T S^2 / (t s^2)                      of a shape of t frames and crops of s pixels; (T, S) is the full shape
        batch = m batch_size,   rate = m times that of the full shape
        (t, s) = (a T, b S)                      long cycle: each pair (a, b) once per stage of the learning rate
        crop = c_1 S, c_2 S, s in turn           short cycle within a long shape, step after step, with (s / crop)^2
                                                 times its batch

    Epochs of a shape are proportional to the average batch of its short cycle, so every shape has the same number of
    steps. Fine-tuning at the end has the full shape alone; the run is scaled to epoch_factor max_epoch epochs.

    Args:
      batch_size: clips in a batch of the full shape, >= 1.
      frames: T >= 1, frames of a full clip.
      crop: S >= 1, pixels along an edge of a full clip.
      steps: epochs at which the stages of the ordinary learning rate begin: ascending, the first 0, two or more.
      max_epoch: epochs of the ordinary run, > the last of `steps`.
      gamma: the learning rate of a stage / that of the stage before, > 0. Default 0.1.
      epoch_factor: epochs of this run / those of the ordinary one, > 0. Default 1.5 (paper).
      short_cycle: whether crops also change from step to step. Default True.
      long_factors: pairs (a, b) of fractions of the frames and of the crop, each in (0, 1]; the last is that of
        fine-tuning. Default (1/4, sqrt(1/2)), (1/2, sqrt(1/2)), (1/2, 1), (1, 1) (official code).
      short_factors: c_1 and c_2, fractions of S, in (0, 1]. Default 1/2, sqrt(1/2) (official code).

    Returns:
      A plan, of Python numbers: every shape is one compiled program. Statistics of batch normalization should be over
      8 clips for every batch size (official code).

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> plan = multigrid_schedule(8, frames=16, crop=112, steps=[0, 40, 70], max_epoch=90, epoch_factor=1.0)
      >>> plan.rows[0], plan.rates[:3]
      (MultigridRow(stage=0, batch_factor=8, frames=4, crop=79, end_epoch=21), (8.0, 4.0, 2.0))
      >>> [plan.shape(0, step) for step in range(3)]
      [(128, 4, 56), (64, 4, 79), (64, 4, 79)]

    Reference: Wu et al. A Multigrid Method for Efficiently Training Video Models. 2020, arXiv 1912.00998. Results are
    those of the official code, which fails without a short cycle; here the long shape is then the only one of its
    cycle. A factor that would be rounded to 0 is 1.
    """
    checks.sequence(steps=steps, long_factors=long_factors, short_factors=short_factors)
    for name, value in (("batch_size", batch_size), ("frames", frames), ("crop", crop), ("max_epoch", max_epoch)):
        checks.integer(name, value, 1)
    for name, value in (("gamma", gamma), ("epoch_factor", epoch_factor)):
        checks.real(name, value, "(0, inf)")
    for name, pairs in (("long_factors", long_factors), ("short_factors", [short_factors])):
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"{name} must be pairs of fractions, got {pairs!r}; write ((0.5, 1.0), (1.0, 1.0))")
        for share in (share for pair in pairs for share in pair):
            checks.real(name, share, "(0, 1]")
    checks.choice("short_cycle", short_cycle, (True, False))
    ends = list(steps)
    if len(ends) < 2 or ends[0] != 0 or ends != sorted(set(ends)) or ends[-1] >= max_epoch:
        raise ValueError(f"steps must be two or more epochs that ascend from 0 to below max_epoch, got {steps!r}")

    longs = [(round(frames * a), round(crop * b)) for a, b in long_factors]
    longs = [(max(t, 1), max(s, 1)) for t, s in longs]

    def relative(t: int, s: float) -> int:
        return max(round(frames * crop**2 / (t * s**2)), 1)

    def average(t: int, s: int) -> float:
        crops = [crop * c for c in short_factors] + [s] if short_cycle else [s]
        return sum(relative(t, c) for c in crops) / len(crops)

    # Epochs at an arbitrary scale: each shape of a stage has the same number of steps.
    averages = [average(*shape) for shape in longs]
    stages = [(stage, end - start) for stage, (start, end) in enumerate(itertools.pairwise(ends))]
    parts = [(i, k, n * average / sum(averages)) for i, n in stages for k, average in enumerate(averages)]
    saved = ends[-1] / sum(epochs / averages[k] for _, k, epochs in parts)
    parts.append((len(stages), len(longs) - 1, (max_epoch - ends[-1]) / saved * averages[-1]))
    scale = max_epoch * epoch_factor / sum(epochs for *_, epochs in parts)

    rows, total = [], 0.0
    for stage, k, epochs in parts:
        total += epochs * scale
        rows.append(MultigridRow(stage, relative(*longs[k]), *longs[k], round(total)))
    rates = [gamma**row.stage * row.batch_factor for row in rows]
    # The first half of the fine-tuning keeps the rate of the stage before it.
    boundaries = [0, *(row.end_epoch for row in rows[:-1]), (rows[-2].end_epoch + rows[-1].end_epoch) // 2]

    def shape(epoch: int, step: int) -> tuple[int, int, int]:
        checks.integer("epoch", epoch)
        checks.integer("step", step)
        row = next((row for row in rows if epoch < row.end_epoch), rows[-1])
        many = batch_size * row.batch_factor
        if not short_cycle or step % 3 == 2:
            return many, row.frames, row.crop
        small = crop * short_factors[step % 3]
        return many * max(round((row.crop / small) ** 2), 1), row.frames, round(small)

    return MultigridPlan(tuple(rows), tuple(boundaries), (*rates[:-1], rates[-2], rates[-1]), rows[-1].end_epoch, shape)


register(
    multigrid_schedule,
    form="function",
    paper=Paper("A Multigrid Method for Efficiently Training Video Models", "Wu et al.", 2020, "1912.00998"),
    golden=("large_batch/multigrid_schedule",),
    example={"batch_size": 8, "frames": 16, "crop": 112, "steps": (0, 40, 70), "max_epoch": 90},
)
