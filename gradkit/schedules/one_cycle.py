"""One cycle: the learning rate rises to a peak and falls far below its start, while momentum falls and rises."""

import itertools
from typing import Any

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.phases import Schedule, phases
from gradkit.types import Scalar

PAPER = Paper("A disciplined approach to neural network hyper-parameters: Part 1", "Smith", 2018, "1803.09820")
ANNEAL = {"cos": "cosine", "linear": "linear"}


def _lengths(total_steps: int, pct_start: float, three_phase: bool, convention: str) -> list[float]:
    total_steps = checks.integer("total_steps", total_steps, 2)
    checks.real("pct_start", pct_start, "(0, 1)")
    checks.choice("three_phase", three_phase, [True, False])
    checks.choice("convention", convention, ["torch", "optax"])
    up, down = pct_start * total_steps, 2 * pct_start * total_steps
    ends: tuple[float, ...] = (up - 1, down - 2, total_steps - 1)
    if convention == "optax":
        ends = (int(up), int(down), total_steps)
    if not three_phase:
        ends = (ends[0], ends[2])
    lengths = [end - start for start, end in itertools.pairwise([0, *ends])]
    if min(lengths) <= 0:
        raise ValueError(
            f"one_cycle: pct_start={pct_start!r} of total_steps={total_steps!r} leaves a phase without a step; give "
            "more steps, or another pct_start"
        )
    return lengths


def _through(values: list[Any], lengths: list[float], anneal: str) -> Schedule:
    """A schedule that reaches one value after another."""
    checks.choice("anneal", anneal, list(ANNEAL))
    ends = itertools.pairwise(values)
    return phases([(length, ANNEAL[anneal], a, b) for length, (a, b) in zip(lengths, ends, strict=True)])


def one_cycle(
    peak_value: Scalar,
    *,
    total_steps: int,
    pct_start: float = 0.3,
    div_factor: Scalar = 25.0,
    final_div_factor: Scalar = 1e4,
    anneal: str = "cos",
    three_phase: bool = False,
    convention: str = "torch",
) -> Schedule:
    """The learning rate of one cycle.

    Equations, with T = total_steps; each phase is a line or half a cosine:

        initial = peak / div_factor,    final = initial / final_div_factor
        initial -> peak -> final                                                two phases
        initial -> peak -> initial -> final                                     three phases, the first two equally long
        ends: pct_start T - 1, (2 pct_start T - 2,) T - 1                       "torch", may be between two steps
        ends: int(pct_start T), (int(2 pct_start T),) T                         "optax"

    Args:
      peak_value: largest learning rate, >= 0; may be traced.
      total_steps: T >= 2; afterwards the learning rate stays at its final value.
      pct_start: fraction of the steps that rise, in (0, 1). Default 0.3 (torch, optax, fastai).
      div_factor: peak / initial, > 0. Default 25 (torch, optax).
      final_div_factor: initial / final, > 0. Default 1e4 (torch, optax).
      anneal: "cos" (default) or "linear" (the paper).
      three_phase: whether the fall goes to the initial learning rate first, and to the final one in a third phase (the
        paper). Default False.
      convention: where phases end: "torch" (default) or "optax".

    Returns:
      A schedule step -> rate. No state, no collective.

    Raises:
      ValueError: a hyperparameter outside its range, or a phase that would have no step.

    Example:
      >>> schedule = one_cycle(1.0, total_steps=6, pct_start=0.5, div_factor=2.0, anneal="linear")
      >>> [round(float(schedule(step)), 3) for step in range(6)]
      [0.5, 0.75, 1.0, 0.667, 0.333, 0.0]

    Reference: Smith. A disciplined approach to neural network hyper-parameters: Part 1. 2018, arXiv 1803.09820.
    The paper has lines, three phases, and a last phase of several orders of magnitude; the defaults are torch's.
    """
    checks.real("peak_value", peak_value, "[0, inf)")
    checks.real("div_factor", div_factor, "(0, inf)")
    checks.real("final_div_factor", final_div_factor, "(0, inf)")
    lengths = _lengths(total_steps, pct_start, three_phase, convention)
    initial = peak_value / div_factor
    back = [initial] if three_phase else []
    return _through([initial, peak_value, *back, initial / final_div_factor], lengths, anneal)


def one_cycle_b1(
    total_steps: int,
    *,
    pct_start: float = 0.3,
    b1_peak: Scalar = 0.95,
    b1_trough: Scalar = 0.85,
    anneal: str = "cos",
    three_phase: bool = False,
    convention: str = "torch",
) -> Schedule:
    """The momentum of one cycle: low while the learning rate is high.

    Equations, over the phases of `one_cycle`:

        b1_peak -> b1_trough -> b1_peak                     and with three phases constant in the third

    Args:
      total_steps: T >= 2; afterwards b1 stays at `b1_peak`.
      pct_start: as in `one_cycle`, which should have the same. Default 0.3.
      b1_peak: largest value, in [0, 1). Default 0.95 (paper). May be traced.
      b1_trough: value where the learning rate peaks, in [0, 1). Default 0.85 (paper). May be traced.
      anneal: "cos" (default) or "linear" (paper).
      three_phase: as in `one_cycle`. Default False.
      convention: as in `one_cycle`. Default "torch".

    Returns:
      A schedule step -> b1, for `gk.scale_by_scheduled_adam`; of other methods through `gk.inject_hyperparams`. No
      state, no collective.

    Raises:
      ValueError: a hyperparameter outside its range, or a phase that would have no step.

    Example:
      >>> schedule = one_cycle_b1(6, pct_start=0.5, anneal="linear")
      >>> [round(float(schedule(step)), 3) for step in range(6)]
      [0.95, 0.9, 0.85, 0.883, 0.917, 0.95]

    Reference: Smith. A disciplined approach to neural network hyper-parameters: Part 1. 2018, arXiv 1803.09820.
    With a varying momentum the total weight of a running mean is not 1 - b1^t but 1 minus the product of all b1, by
    which `gk.scale_by_scheduled_adam` divides.
    """
    checks.real("b1_peak", b1_peak, "[0, 1)")
    checks.real("b1_trough", b1_trough, "[0, 1)")
    lengths = _lengths(total_steps, pct_start, three_phase, convention)
    stay = [b1_peak] if three_phase else []
    return _through([b1_peak, b1_trough, b1_peak, *stay], lengths, anneal)


register(
    one_cycle,
    form="schedule",
    paper=PAPER,
    golden=("step_size/one_cycle",),
    example={"peak_value": 0.1, "total_steps": 10},
)
register(
    one_cycle_b1,
    form="schedule",
    paper=PAPER,
    golden=("step_size/one_cycle",),
    example={"total_steps": 10},
)
