"""Warmup, stable, decay: a constant rate that can be cooled down from any checkpoint."""

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.builders import decay, hold, take, warmup
from gradkit.schedules.phases import Schedule, check_shape
from gradkit.types import Scalar

PAPER = Paper("MiniCPM: Unveiling the Potential of Small Language Models", "Hu et al.", 2024, "2404.06395")
CYCLES = Paper(
    "Understanding Warmup-Stable-Decay Learning Rates: A River Valley Loss Landscape Perspective",
    "Wen et al.",
    2024,
    "2410.05192",
)


def _check(peak_value: Any, warmup_steps: int, init_value: Any) -> None:
    checks.real("peak_value", peak_value, "[0, inf)")
    warmup_steps = checks.integer("warmup_steps", warmup_steps)
    checks.real("init_value", init_value, "[0, inf)")


def _check_decay(shape: str, end_value: Any, half_life: Any) -> None:
    check_shape(shape, half_life)
    checks.real("end_value", end_value, "(0, inf)" if shape == "exponential" else "[0, inf)")


def wsd(
    peak_value: Scalar,
    *,
    warmup_steps: int,
    stable_steps: int | None = None,
    decay_steps: int | None = None,
    shape: str = "1-sqrt",
    init_value: Scalar = 0.0,
    end_value: Any = 0.0,
    half_life: float | None = None,
) -> Schedule:
    """Warms up, stays constant, and decays.

    Equations, with W = warmup_steps, S = stable_steps, N = decay_steps and p = (step - W - S) / N:

        value = init + (peak - init) step / W               step < W
              = peak                                        step < W + S
              = the decay                                   step < W + S + N
              = end                                         afterwards

    with the shape of the decay

        end + (peak - end) (1 - p)                          "linear"
        end + (peak - end) (1 - sqrt(p))                    "1-sqrt"
        end + (peak - end) (1 - p^2)                        "1-square"
        end + (peak - end) (1 + cos(pi p)) / 2              "cosine"
        peak (end / peak)^p                                 "exponential"
        peak 2^(-(step - W - S) / half_life)                "half_life"

    Args:
      peak_value: value of the stable phase, >= 0; may be traced.
      warmup_steps: W >= 0. With 0 the first update has the peak.
      stable_steps: S >= 0. Default None: constant without an end; `wsd_cooldown` then makes the decay.
      decay_steps: N >= 0; must be given with `stable_steps`, and only with it.
      shape: of the decay. Default "1-sqrt", the best of those Hägele et al. compare. MiniCPM: "half_life".
      init_value: value of the first update, >= 0. Default 0, with which the first update is 0; peak / W wastes no step.
      end_value: value after the decay, >= 0; > 0 for "exponential". Default 0.
      half_life: steps in which the value halves, > 0; for shape "half_life" only.

    Returns:
      A schedule step -> value, to which phases can be added. No state, no collective.

    Raises:
      ValueError: a hyperparameter outside its range, or one that has no effect with another.

    Example:
      >>> import jax.numpy as jnp
      >>> schedule = wsd(1.0, warmup_steps=2, stable_steps=2, decay_steps=4)
      >>> print(schedule(jnp.arange(9)).round(3))
      [0.    0.5   1.    1.    1.    0.5   0.293 0.134 0.   ]

    Reference: Hu et al. MiniCPM: Unveiling the Potential of Small Language Models. 2024, arXiv 2404.06395;
    shapes: Hägele et al. Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations. 2024,
    arXiv 2405.18392. pytorch_optimizer ignores its least value during all decays but the cosine and jumps up to
    it after them.
    """
    _check(peak_value, warmup_steps, init_value)
    _check_decay(shape, end_value, half_life)
    if (stable_steps is None) != (decay_steps is None):
        raise ValueError(
            f"wsd: stable_steps and decay_steps must be given together, got {stable_steps!r} and {decay_steps!r}; "
            "without an end of the stable phase, wsd_cooldown makes the decay"
        )
    rise = warmup(warmup_steps, peak_value, init_value=init_value)
    if stable_steps is None or decay_steps is None:
        return rise + hold()
    stable_steps = checks.integer("stable_steps", stable_steps)
    decay_steps = checks.integer("decay_steps", decay_steps)
    return rise + hold(stable_steps) + decay(shape, decay_steps, end_value, half_life=half_life)


def wsd_cooldown(
    schedule: Callable[[Any], Any],
    *,
    start: int,
    decay_steps: int,
    shape: str = "1-sqrt",
    end_value: Scalar = 0.0,
    half_life: float | None = None,
) -> Schedule:
    """Follows a schedule up to a step, and cools down from there.

    Equations, with the shapes of decay of `wsd`, from peak = schedule(start) with p = (step - start) / decay_steps:

        value = schedule(step)                              step < start
              = the decay, then end                         step >= start

    Args:
      schedule: step -> value; mostly `wsd` without an end.
      start: step of the checkpoint the cooldown starts from, >= 0: the number of updates made so far.
      decay_steps: N >= 0.
      shape: of the decay, as in `wsd`. Default "1-sqrt".
      end_value: value after the decay, >= 0. Default 0.
      half_life: as in `wsd`.

    Returns:
      A schedule. The state of the optimizer continues: its counter is `start`.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> branch = wsd_cooldown(wsd(1.0, warmup_steps=2), start=6, decay_steps=2, shape="linear")
      >>> print(branch(jnp.arange(4, 10)))
      [1.  1.  1.  0.5 0.  0. ]

    Reference: Hägele et al. Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations. 2024,
    arXiv 2405.18392.
    """
    start = checks.integer("start", start)
    decay_steps = checks.integer("decay_steps", decay_steps)
    _check_decay(shape, end_value, half_life)
    return take(schedule, start) + decay(shape, decay_steps, end_value, half_life=half_life)


def wsd_cycles(
    peak_value: Scalar,
    *,
    warmup_steps: int,
    cycles: Iterable[Sequence[int]],
    shape: str = "1-sqrt",
    init_value: Scalar = 0.0,
    end_value: Scalar = 0.0,
    half_life: float | None = None,
) -> Schedule:
    """Warms up once, then stays constant and decays in every cycle, back at the peak after each decay (WSD-S).

    Equations: those of `wsd`, with the stable phase and the decay once per cycle.

    Args:
      peak_value: value of the stable phases, >= 0; may be traced.
      warmup_steps: W >= 0.
      cycles: pairs (stable steps, decay steps), at least one.
      shape: of the decays. Default "1-sqrt".
      init_value: value of the first update, >= 0. Default 0.
      end_value: value that each decay goes to, >= 0. It is reached only after the last one. Default 0.
      half_life: as in `wsd`.

    Returns:
      A schedule.

    Raises:
      ValueError: no cycle, or a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> schedule = wsd_cycles(1.0, warmup_steps=0, cycles=[(1, 2), (0, 2)], shape="linear")
      >>> print(schedule(jnp.arange(6)))
      [1.  1.  0.5 1.  0.5 0. ]

    Reference: Wen et al. Understanding Warmup-Stable-Decay Learning Rates: A River Valley Loss Landscape Perspective.
    2024, arXiv 2410.05192.
    """
    _check(peak_value, warmup_steps, init_value)
    _check_decay(shape, end_value, half_life)
    pairs: list[Any] = (
        [pair if isinstance(pair, Sequence) else () for pair in cycles] if isinstance(cycles, Iterable) else []
    )
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"wsd_cycles: cycles must be pairs (stable steps, decay steps), at least one, got {cycles!r}")
    parts = [hold(stable, peak_value) + decay(shape, steps, end_value, half_life=half_life) for stable, steps in pairs]
    return functools.reduce(operator.add, parts, warmup(warmup_steps, peak_value, init_value=init_value))


register(
    wsd,
    form="schedule",
    paper=PAPER,
    golden=("step_size/wsd",),
    example={"peak_value": 0.1, "warmup_steps": 2, "stable_steps": 4, "decay_steps": 4},
)
register(
    wsd_cooldown,
    form="schedule",
    paper=Paper(
        "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", "Hägele et al.", 2024, "2405.18392"
    ),
    example={"schedule": wsd(0.1, warmup_steps=2), "start": 5, "decay_steps": 4},
)
register(
    wsd_cycles,
    form="schedule",
    paper=CYCLES,
    example={"peak_value": 0.1, "warmup_steps": 2, "cycles": ((2, 2), (3, 2))},
)
