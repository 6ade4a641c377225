"""Schedules as lists of phases that compose."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.plot import plot

Curve = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
LAST_STEP = 2**31 - 1


def real_array(value: Any) -> jax.Array:
    """The value in the dtype of schedules: float32, or float64 where that is enabled."""
    return jnp.asarray(value, jnp.result_type(float))


def _between(progress: Callable[[jax.Array], jax.Array]) -> Curve:
    """A curve between a and b from its progress in [0, 1]: exactly a at 0, exactly b at 1."""

    def curve(a: jax.Array, b: jax.Array, p: jax.Array) -> jax.Array:
        return a * (1 - progress(p)) + b * progress(p)

    return curve


def _geometric(a: jax.Array, b: jax.Array, p: jax.Array) -> jax.Array:
    for name, value in (("the first value of an exponential phase", a), ("end_value", b)):
        checks.real(name, value, "(0, inf)")
    return a * jnp.exp(p * jnp.log(b / a))


CURVES: dict[str, Curve] = {
    "linear": _between(lambda p: p),
    "cosine": _between(lambda p: jnp.square(jnp.sin(p * (math.pi / 2)))),
    "1-sqrt": _between(jnp.sqrt),
    "1-square": _between(jnp.square),
    "exponential": _geometric,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Phase:
    """One phase of a schedule.

    Attributes:
      length: number of steps; a fraction where the phase ends between two steps; None: without an end.
      at: (steps since the start of the phase, last value before it or None) -> value.
      end: last value before the phase, or None -> value that it goes to.
    """

    length: float | None
    at: Callable[[jax.Array, Any], jax.Array]
    end: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Schedule:
    """A list of phases, which is also a function step -> value, as optax takes it.

    `schedule(0)` is the value of the first update. Steps may be Python integers, integer arrays of any shape, or
    traced; values are float32 (float64 where that is enabled). Values of phases may be traced, lengths not.

    Attributes:
      phases: the list; only the last may be unending.
    """

    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        if any(phase.length is None for phase in self.phases[:-1]):
            raise ValueError(
                "a schedule must have no phase after one without an end; give that phase a number of steps"
            )
        if self.length is not None and self.length > LAST_STEP:
            raise ValueError(f"a schedule must be at most {LAST_STEP} steps long, got {self.length}")

    def __repr__(self) -> str:
        return f"Schedule(lengths={tuple(phase.length for phase in self.phases)})"

    def __add__(self, after: "Schedule") -> "Schedule":
        return Schedule(self.phases + after.phases) if isinstance(after, Schedule) else NotImplemented

    @property
    def length(self) -> float | None:
        """Steps until the last value is reached; None: never."""
        lengths = [phase.length for phase in self.phases]
        return None if None in lengths else sum(length for length in lengths if length is not None)

    def __call__(self, step: Any) -> jax.Array:
        step = jnp.asarray(step)
        return self.at(step.astype(int) if jnp.issubdtype(step.dtype, jnp.integer) else real_array(step), None)

    def at(self, since: jax.Array, before: Any) -> jax.Array:
        """The value `since` steps after the start, where `before` is the last value before the start."""
        candidates = []
        for phase in self.phases:
            value = phase.at(since, before)
            if phase.length is None:
                break
            candidates.append((_is_before(since, phase.length), value))
            since, before = _minus(since, phase.length), phase.end(before)
        else:
            value = real_array(before)
        for inside, earlier in reversed(candidates):
            value = jnp.where(inside, earlier, value)
        return value

    def plot(self, steps: int | None = None, *, width: int = 72, height: int = 10) -> str:
        """The curve as characters, see `gk.schedules.plot`."""
        return plot(self, steps, width=width, height=height)

    def end(self, before: Any) -> Any:
        """The value that the last phase goes to."""
        for phase in self.phases:
            before = phase.end(before)
        return before


def _is_before(since: jax.Array, length: float) -> jax.Array:
    return since < (math.ceil(length) if jnp.issubdtype(since.dtype, jnp.integer) else length)


def _minus(since: jax.Array, length: float) -> jax.Array:
    # Steps are counted in integers for as long as lengths are: float32 has no odd number above 2^24.
    return since - length if isinstance(length, int) else real_array(since) - length


def _never(before: Any) -> Any:
    raise ValueError(f"a schedule without end goes to no value (it came from {before})")


def unending(at: Callable[[jax.Array], jax.Array]) -> Schedule:
    """A schedule of one phase that never ends, from a function of the steps since its start."""
    return Schedule((Phase(None, lambda since, _: at(jnp.maximum(since, 0)), _never),))


def check_shape(shape: str, half_life: Any = None) -> None:
    """Raises `ValueError` where a shape is unknown, or lacks its half-life."""
    checks.choice("shape", shape, [*CURVES, "half_life"])
    if (shape == "half_life") != (half_life is not None):
        raise ValueError(
            f"half_life must be given with shape='half_life' and with no other shape, got shape={shape!r} and "
            f"half_life={half_life!r}"
        )
    checks.real("half_life", half_life, "(0, inf)", optional=True)


def ramp(length: float, shape: str, init_value: Any = None, end_value: Any = None, half_life: Any = None) -> Schedule:
    """One phase of any shape, from which the builders are made.

    Args:
      length: number of steps, >= 0; an integer, or a fraction where the phase ends between two steps.
      shape: a key of `CURVES`, or "half_life".
      init_value: first value. None: the last value of the phase before.
      end_value: value that it goes to. None: constant at the first value.
      half_life: steps in which the value halves, for shape "half_life".
    """
    check_shape(shape, half_life)
    checks.real("a length", length, "[0, inf)")
    checks.real("init_value", init_value, optional=True)
    checks.real("end_value", end_value, optional=True)
    length = int(length) if length == int(length) else float(length)

    def first(before: Any) -> jax.Array:
        if init_value is None and before is None:
            raise ValueError(
                "init_value must be given for the first phase of a schedule, got None; write the value it starts from"
            )
        return real_array(before if init_value is None else init_value)

    def at(since: jax.Array, before: Any) -> jax.Array:
        a = first(before)
        if end_value is None:
            return a
        p = jnp.clip(real_array(since) / (length or 1), 0, 1)
        if half_life is not None:
            return a * jnp.exp2(-p * (length / real_array(half_life)))
        return CURVES[shape](a, real_array(end_value), p)

    return Schedule((Phase(length, at, lambda before: first(before) if end_value is None else end_value),))


def phases(table: Iterable[Schedule | Sequence[Any]], *, total_steps: int | None = None) -> Schedule:
    """A schedule from a table of phases, with lengths in steps or in fractions of a run.

    A schedule is a list of phases, each with a length in steps, a shape, a first value a and a value b that it goes to,
    which it keeps after the last phase. `+` concatenates schedules; a phase without a first value starts at the last
    value of the phase before it. Equations, with p = (step - first step of the phase) / length, in [0, 1):

        value = a + (b - a) p                                                     "linear"
              = a + (b - a) (1 - cos(pi p)) / 2                                   "cosine"
              = a + (b - a) sqrt(p)                                               "1-sqrt"
              = a + (b - a) p^2                                                   "1-square"
              = a (b / a)^p                                                       "exponential"
              = a 2^(-steps since the start / half_life), then b                  "half_life"

    Args:
      table: rows (length, shape, from, to), or schedules. `from` None: the last value of the row before; `to` None:
        constant. Lengths are >= 0, and fractions where a phase ends between two steps.
      total_steps: steps of the run, >= 1, of which lengths are then fractions: they add up to at most 1, and one of
        them may be None, the remaining steps. Phases end at whole steps; a schedule in the table keeps its length.
        Default None: lengths are in steps.

    Returns:
      The rows as one schedule.

    Raises:
      ValueError: an empty table, a row that is not four values, an unknown shape, a negative length, fractions of more
        than the run.

    Example:
      >>> schedule = phases([(2, "linear", 0.0, 1.0), (2, "linear", None, None), (2, "cosine", None, 0.0)])
      >>> print(schedule(jnp.arange(7)).round(3))
      [0.  0.5 1.  1.  1.  0.5 0. ]
      >>> schedule = phases(
      ...     [(0.1, "linear", 0.0, 1.0), (None, "linear", None, None), (0.2, "linear", None, 0.0)], total_steps=10
      ... )
      >>> print(schedule(jnp.arange(11)))
      [0.  1.  1.  1.  1.  1.  1.  1.  1.  0.5 0. ]

    Reference: This library; every schedule of this room without feedback is such a table. Warm-up, constant learning
    rate and cooldown in this form: Hägele et al. Scaling Laws and Compute-Optimal Training Beyond Fixed Training
    Durations. 2024, arXiv 2405.18392.
    """
    rows = list(table) if isinstance(table, Iterable) and not isinstance(table, str) else []
    if not rows:
        raise ValueError(f"phases: table must be rows (length, shape, from, to), at least one, got {table!r}")
    for row in rows:
        if not isinstance(row, Schedule) and (not isinstance(row, Sequence) or isinstance(row, str) or len(row) != 4):
            raise ValueError(f"phases: a row must be a schedule or (length, shape, from, to), got {row!r}")
    total_steps = checks.integer("total_steps", total_steps, 1, optional=True)
    if total_steps is not None:
        rows = _in_steps(rows, total_steps)
    parts = [row if isinstance(row, Schedule) else ramp(*row) for row in rows]
    return Schedule(tuple(itertools.chain.from_iterable(part.phases for part in parts)))


def _in_steps(rows: list[Any], total_steps: int) -> list[Any]:
    """The rows with their lengths, fractions of a run, as whole steps that add up: the ends of phases are rounded, not
    their lengths."""
    lengths = [row.length if isinstance(row, Schedule) else row[0] for row in rows]
    shares = []
    for row, length in zip(rows, lengths, strict=True):
        if isinstance(row, Schedule):
            shares.append(math.inf if length is None else length / total_steps)
            continue
        checks.real("a length", length, "[0, 1]", optional=True)
        shares.append(length)
    open_rows, known = shares.count(None), sum(share for share in shares if share is not None)
    # 1e-9 covers one rounding per row.
    if open_rows > 1 or known > 1 + 1e-9:
        raise ValueError(
            "phases: lengths must be fractions that add up to at most 1, one of them None for the rest, got "
            f"{lengths}; for lengths in steps leave out total_steps"
        )
    filled = [max(0.0, 1 - known) if share is None else share for share in shares]
    ends = [round(end * total_steps) for end in itertools.accumulate(filled, initial=0.0)]
    steps = [end - start for start, end in itertools.pairwise(ends)]
    return [row if isinstance(row, Schedule) else (n, *row[1:]) for row, n in zip(rows, steps, strict=True)]


register(
    phases,
    form="schedule",
    paper=Paper(
        "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", "Hägele et al.", 2024, "2405.18392"
    ),
    example={"table": ((4, "linear", 0.0, 0.1), (6, "linear", None, None), (8, "1-sqrt", None, 0.0))},
)
