"""How much the small networks count beside the one that they share their weights with."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.phases import LAST_STEP, Phase, Schedule, real_array
from gradkit.types import Scalar

PAPER = Paper(
    "DepS: Delayed epsilon-Shrinking for Faster Once-For-All Training", "Annavajjala, Khare et al.", 2024, "2407.06167"
)
KINDS = ("linear", "exponential")


def shrink_rate_schedule(start: int, warmup_steps: int, init: Scalar = 1e-4, kind: str = "linear") -> Schedule:
    """The weight of the losses of the smaller networks: 0 for a while, then rising to 1.

        epsilon(t) = 0                                  t < start
                     init + (1 - init) p                p = (t - start) / warmup_steps, linear
                     init^{1 - p}                       exponential
                     1                                  t >= start + warmup_steps

    The weight of all terms of `gk.gradients.sandwich_gradient` but the largest network's, which keeps its own learning
    rate.

    Args:
      start: steps of the largest network alone, >= 0: about half of its training (paper).
      warmup_steps: steps of the rise, >= 1.
      init: the first weight after `start`, in (0, 1]. Default 1e-4.
      kind: "linear" or "exponential". Default "linear".

    Returns:
      A schedule step -> weight, to which phases can be added. No state, no collective.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> print(shrink_rate_schedule(2, 2, 0.5)(jnp.arange(5)))
      [0.   0.   0.5  0.75 1.  ]

    Reference: Annavajjala, Khare et al. DepS: Delayed epsilon-Shrinking for Faster Once-For-All Training. 2024, arXiv
    2407.06167. Shape, first value and length of the rise are not fixed by what was at hand of the paper.
    """
    start = checks.integer("start", start, 0)
    warmup_steps = checks.integer("warmup_steps", warmup_steps, 1)
    checks.real("init", init, "(0, 1]")
    checks.choice("kind", kind, KINDS)

    def rise(since: jax.Array, before: Any) -> jax.Array:
        del before
        p, first = real_array(jnp.clip(since, 0, warmup_steps)) / min(warmup_steps, LAST_STEP), real_array(init)
        return first + (1 - first) * p if kind == "linear" else first ** (1 - p)

    def nothing(since: jax.Array, before: Any) -> jax.Array:
        del before
        return jnp.zeros_like(real_array(since))

    before = (Phase(start, nothing, lambda _: real_array(0.0)),) if start else ()
    return Schedule((*before, Phase(warmup_steps, rise, lambda _: real_array(1.0))))


register(shrink_rate_schedule, form="schedule", paper=PAPER, example={"start": 4, "warmup_steps": 6})
