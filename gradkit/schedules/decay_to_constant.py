"""Exponential decay that stops at a share of its first value."""

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.phases import Schedule, real_array, unending
from gradkit.types import Scalar

PAPER = Paper(
    "BigNAS: Scaling Up Neural Architecture Search with Big Single-Stage Models", "Yu et al.", 2020, "2003.11142"
)


def decay_to_constant(
    init_value: Scalar,
    *,
    transition_steps: int,
    decay_rate: Scalar = 0.97,
    floor: Scalar = 0.05,
    staircase: bool = False,
) -> Schedule:
    """Falls exponentially, and stays at a share of its first value from then on.

        value(t) = init_value max(decay_rate^{t / transition_steps}, floor)

    which is `optax.exponential_decay` with `end_value=floor * init_value`. A large and a small network that share
    weights converge at different speeds; the constant end lets the small ones go on.

    Args:
      init_value: first value, >= 0; may be traced.
      transition_steps: steps of one factor `decay_rate`, >= 1; 2.4 epochs in the paper.
      decay_rate: in (0, 1]. Default 0.97 (paper).
      floor: share of the first value at which the decay stops, in [0, 1]. Default 0.05 (paper).
      staircase: whether the exponent is rounded down, as in TensorFlow's form. Default False.

    Returns:
      A schedule step -> value. No state, no collective.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> print(decay_to_constant(1.0, transition_steps=1, decay_rate=0.5, floor=0.2)(jnp.arange(5)))
      [1.   0.5  0.25 0.2  0.2 ]

    Reference: Yu et al. BigNAS: Scaling Up Neural Architecture Search with Big Single-Stage Models. 2020, arXiv
    2003.11142.
    """
    checks.real("init_value", init_value, "[0, inf)")
    transition_steps = checks.integer("transition_steps", transition_steps, 1)
    checks.real("decay_rate", decay_rate, "(0, 1]")
    checks.real("floor", floor, "[0, 1]")
    checks.switch(staircase=staircase)

    def at(since: jax.Array) -> jax.Array:
        exponent = real_array(since) / transition_steps
        exponent = jnp.floor(exponent) if staircase else exponent
        return real_array(init_value) * jnp.maximum(real_array(decay_rate) ** exponent, real_array(floor))

    return unending(at)


register(
    decay_to_constant,
    form="schedule",
    paper=PAPER,
    example={"init_value": 0.1, "transition_steps": 2, "decay_rate": 0.8},
)
