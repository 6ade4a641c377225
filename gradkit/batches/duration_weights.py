"""Weights by how long an action ran, where workers hand in what they have finished."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.arrays import reals, refuse

PAPER = Paper("Reinforcement Learning for Machine Learning Engineering Agents", "Yang et al.", 2025, "2509.01684")


def duration_weights(durations: Any, *, normalize: bool = True, axis_name: Any = None) -> jax.Array:
    """Weights of the policy gradients of actions, in proportion to the time they took.

        w_i = d_i / mean(d)

    Asynchronous workers return actions in proportion to 1 / d: without a weight, training prefers fast actions for
    being fast. Take the mean of w_i times the loss of action i over all actions.

    Args:
      durations: d > 0, floating point of any shape.
      normalize: whether the weights have the mean 1. Default True; else they are d itself.
      axis_name: axis of `vmap` or `shard_map` whose members hold parts of the batch, over which the mean is taken as
        well. Default None.

    Returns:
      An array like `durations`, float32 or wider.

    Raises:
      ValueError: a duration that is not > 0, where values can be read; an argument of another kind.

    Example:
      >>> duration_weights(jnp.array([1.0, 3.0])).tolist()
      [0.5, 1.5]

    Reference: Yang et al. Reinforcement Learning for Machine Learning Engineering Agents. 2025, arXiv 2509.01684. The
    normalisation to mean 1 is ours; the paper multiplies by the duration, and how it normalises could not be verified.
    """
    checks.arrays(durations=durations)
    checks.axis_name("axis_name", axis_name)
    checks.switch(normalize=normalize)
    d = reals("duration_weights", "durations", durations)
    refuse("duration_weights", "durations", d, lambda x: ~((x > 0) & (x < jnp.inf)), "> 0 and finite")
    if not normalize:
        return d
    mean = jnp.mean(d)
    return d / (mean if axis_name is None else jax.lax.pmean(mean, axis_name))


register(duration_weights, form="function", paper=PAPER, example={"durations": jax.ShapeDtypeStruct((16,), "float32")})
