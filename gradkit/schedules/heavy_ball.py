"""Stage-wise decay for the heavy ball method: constant learning rates, divided by a factor after every stage."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.phases import LAST_STEP, Phase, Schedule, real_array
from gradkit.types import Scalar


def stage_decay_schedule(
    init_value: Scalar, *, num_stages: int, steps_per_stage: int, decay_factor: Scalar = 2.0
) -> Schedule:
    """Stays at a value for a stage, and divides it by a factor for the next.

    Equations:

        value(step) = init_value decay_factor^(-stage),    stage = min(step // steps_per_stage, num_stages - 1)

    Args:
      init_value: value of the first stage, >= 0; may be traced.
      num_stages: number of stages, >= 1; after the last one its value is kept.
      steps_per_stage: their length in steps, >= 1.
      decay_factor: C > 1, by which the value is divided from stage to stage. Default 2.

    Returns:
      A schedule step -> value, to which phases can be added. No state, no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> schedule = stage_decay_schedule(1.0, num_stages=3, steps_per_stage=2)
      >>> print(schedule(jnp.arange(7)))
      [1.   1.   0.5  0.5  0.25 0.25 0.25]

    Reference: Pan et al. Accelerated Convergence of Stochastic Heavy Ball Method under Anisotropic Gradient Noise.
    2023, arXiv 2312.14567.
    """
    checks.real("init_value", init_value, "[0, inf)")
    num_stages = checks.integer("num_stages", num_stages, 1, maximum=checks.MOST_UNROLLED)
    steps_per_stage = checks.integer("steps_per_stage", steps_per_stage, 1)
    checks.real("decay_factor", decay_factor, "(1, inf)")

    def of_stage(stage: Any) -> jax.Array:
        return real_array(init_value) * real_array(decay_factor) ** -real_array(stage)

    def at(since: jax.Array, before: Any) -> jax.Array:
        del before
        return of_stage(jnp.clip(since.astype(int) // min(steps_per_stage, LAST_STEP), 0, num_stages - 1))

    return Schedule((Phase(num_stages * steps_per_stage, at, lambda _: of_stage(num_stages - 1)),))


class HeavyBallConstants(NamedTuple):
    """The arguments of `gk.heavy_ball` and `stage_decay_schedule`."""

    momentum: float
    init_value: float
    num_stages: int
    steps_per_stage: int


def heavy_ball_constants(
    kappa: float, *, total_steps: int, decay_factor: float = 2.0, lipschitz: float = 1.0
) -> HeavyBallConstants:
    """The paper's constants for a quadratic of a known condition number.

    Equations, for the condition number kappa, the largest curvature L, T steps and C = decay_factor:

        momentum = (1 - 1 / sqrt(kappa))^2      init_value = 1 / L
        num_stages = log_C(T sqrt(kappa))       steps_per_stage = T / num_stages

    The number of stages is rounded up, their length down, and both are at least 1.

    Args:
      kappa: condition number, largest over smallest curvature, >= 1.
      total_steps: T >= 1.
      decay_factor: C > 1. Default 2.
      lipschitz: L > 0, the largest curvature. Default 1.

    Returns:
      `momentum`, `init_value`, `num_stages` and `steps_per_stage`.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> constants = heavy_ball_constants(100.0, total_steps=1000)
      >>> round(constants.momentum, 4), constants.num_stages, constants.steps_per_stage
      (0.81, 14, 71)

    Reference: Pan et al. Accelerated Convergence of Stochastic Heavy Ball Method under Anisotropic Gradient Noise.
    2023, arXiv 2312.14567. The theorem fixes them up to constant factors, which are 1 here.
    """
    checks.real("kappa", kappa, "[1, inf)")
    total_steps = checks.integer("total_steps", total_steps, 1)
    checks.real("decay_factor", decay_factor, "(1, inf)")
    checks.real("lipschitz", lipschitz, "(0, inf)")
    stages = math.ceil(math.log(total_steps * math.sqrt(kappa)) / math.log(decay_factor))
    stages = min(max(stages, 1), total_steps)
    return HeavyBallConstants((1 - 1 / math.sqrt(kappa)) ** 2, 1 / lipschitz, stages, total_steps // stages)


register(
    stage_decay_schedule,
    form="schedule",
    paper=Paper(
        "Accelerated Convergence of Stochastic Heavy Ball Method under Anisotropic Gradient Noise",
        "Pan et al.",
        2023,
        "2312.14567",
    ),
    example={"init_value": 0.1, "num_stages": 3, "steps_per_stage": 4},
)
