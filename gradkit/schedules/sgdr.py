"""SGDR: a cosine from the peak to the end value, restarted in cycles that grow, without end."""

import math
import numbers
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.phases import CURVES, LAST_STEP, Schedule, real_array, unending
from gradkit.types import Scalar

PAPER = Paper("SGDR: Stochastic Gradient Descent with Warm Restarts", "Loshchilov, Hutter", 2016, "1608.03983")


def _check_cycles(period: int, period_mult: float) -> None:
    period = checks.integer("period", period, 1)
    checks.real("period_mult", period_mult, "[1, inf)")
    if not isinstance(period_mult, numbers.Real):
        raise ValueError(f"sgdr: period_mult must be a Python number, got {period_mult!r}; write 1 or 2")
    if 1 < period_mult < 1.01:
        raise ValueError(f"sgdr: period_mult must be 1 or at least 1.01, got {period_mult!r}")


def _starts(period: int, period_mult: float, *, cycles: float = math.inf) -> list[Fraction]:
    """S_0, S_1, ... as exact fractions of the user's decimals: `cycles` of them, or all that a counter can reach."""
    start, length, mult = Fraction(0), Fraction(period), Fraction(str(period_mult))
    starts = []
    while len(starts) < cycles and start <= LAST_STEP:
        starts.append(start)
        start, length = start + length, length * mult
    return starts


def sgdr_boundaries(cycles: int, *, period: int, period_mult: float = 1) -> list[int]:
    """The first step of each cycle of `sgdr`; keep a snapshot one step earlier.

    Equations, with the start S_i of cycle i of `sgdr`:

        boundary_i = ceil(S_i)

    Args:
      cycles: number of cycles, >= 0.
      period: length of the first cycle in steps, >= 1.
      period_mult: growth of the cycles, 1 or >= 1.01. Default 1.

    Returns:
      Integers; fewer than `cycles` where a 32-bit counter would overflow first.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> sgdr_boundaries(4, period=4, period_mult=2)
      [0, 4, 12, 28]

    Reference: Loshchilov, Hutter. SGDR: Stochastic Gradient Descent with Warm Restarts. 2016, arXiv 1608.03983.
    """
    cycles = checks.integer("cycles", cycles, maximum=checks.MOST_UNROLLED)
    _check_cycles(period, period_mult)
    return [math.ceil(start) for start in _starts(period, period_mult, cycles=cycles)]


def sgdr(
    peak_value: Scalar, *, period: int, period_mult: float = 1, end_value: Scalar = 0.0, peak_mult: Scalar = 1.0
) -> Schedule:
    """Cosine decay with warm restarts, without end.

    Equations, for cycle i = 0, 1, ... of T_i steps, which starts at S_i and falls from peak_i:

        T_i = period period_mult^i
        S_i = T_0 + ... + T_{i-1}
        peak_i = peak peak_mult^i
        value(step) = end + (peak_i - end) (1 + cos(pi (step - S_i) / T_i)) / 2,   S_i <= step < S_{i+1}

    The first step of a cycle has its peak; the end value is never quite reached.

    Args:
      peak_value: value at the first step, >= 0; may be traced.
      period: length T_0 of the first cycle in steps, >= 1.
      period_mult: growth of the cycles, 1 or >= 1.01; a cycle of fractional length ends between two steps.
        Default 1; the paper's best runs have 2.
      end_value: value the cosine falls to, >= 0. Default 0 (torch).
      peak_mult: factor of the peak at every restart, > 0. Default 1 (paper); smaller values are a common addition.

    Returns:
      A schedule step -> value. No state, no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> schedule = sgdr(1.0, period=2, period_mult=2)
      >>> [round(float(schedule(step)), 3) for step in range(7)]
      [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0]

    Reference: Loshchilov, Hutter. SGDR: Stochastic Gradient Descent with Warm Restarts. 2016, arXiv 1608.03983.
    The number of the cycle is computed from integers, not from a logarithm, which is wrong by one at some boundaries.
    """
    checks.real("peak_value", peak_value, "[0, inf)")
    checks.real("end_value", end_value, "[0, inf)")
    checks.real("peak_mult", peak_mult, "(0, inf)")
    _check_cycles(period, period_mult)

    if period_mult == 1:

        def place(step: jax.Array) -> tuple[jax.Array, jax.Array]:
            return step // period, real_array(step % period) / period

    else:
        starts = _starts(period, period_mult)
        whole = np.array([math.floor(start) for start in starts])
        first = np.array([math.ceil(start) for start in starts if start <= LAST_STEP - 1])
        rest = np.array([float(start - math.floor(start)) for start in starts])
        length = np.array([period * float(period_mult) ** i for i in range(len(starts))])

        def place(step: jax.Array) -> tuple[jax.Array, jax.Array]:
            i = jnp.searchsorted(jnp.asarray(first, step.dtype), step, side="right") - 1
            since = real_array(step - jnp.asarray(whole, step.dtype)[i]) - real_array(rest)[i]
            return i, since / real_array(length)[i]

    def at(since: jax.Array) -> jax.Array:
        i, p = place(since.astype(int))
        peak = real_array(peak_value) * real_array(peak_mult) ** real_array(i)
        return CURVES["cosine"](peak, real_array(end_value), p)

    return unending(at)


register(
    sgdr,
    form="schedule",
    paper=PAPER,
    golden=("step_size/sgdr",),
    example={"peak_value": 0.1, "period": 4, "period_mult": 2},
)
