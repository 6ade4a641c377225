"""Running statistics of channels, which normalisation layers share."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit.engine.accumulators import ema
from gradkit.layers.axes import floating


class RunningStatistics(NamedTuple):
    """Mean and variance (population) of every channel, running over steps; start at 0 and 1.

    >>> RunningStatistics(jnp.zeros(8), jnp.ones(8)).var.shape
    (8,)
    """

    mean: jax.Array
    var: jax.Array


def statistics(state: RunningStatistics, like: jax.Array) -> RunningStatistics:
    """The statistics, checked against the channels of `like`."""
    for name, x in (("state.mean", state.mean), ("state.var", state.var)):
        if floating(name, x).shape != like.shape[-1:]:
            raise ValueError(f"{name} must have shape {like.shape[-1:]}, one number per channel, got {x.shape}")
    return state


def moments(x: jax.Array, axis: tuple[int, ...] | None = None) -> RunningStatistics:
    """Mean and population variance over all axes but the last (or over `axis`), one number per channel.

    >>> [v.tolist() for v in moments(jnp.array([[1.0], [3.0]]))]
    [[2.0], [1.0]]
    """
    own = tuple(range(x.ndim - 1)) if axis is None else axis
    mean = jnp.mean(x, axis=own, keepdims=True)
    var = jnp.mean(jnp.square(x - mean), axis=own)
    return RunningStatistics(jnp.mean(x, axis=own), var)


def blend(old: RunningStatistics, new: RunningStatistics, decay: Any) -> RunningStatistics:
    """decay old + (1 - decay) new, computed as `new` is and kept as `old` is.

    >>> old, new = (RunningStatistics(jnp.array([m]), jnp.ones(1)) for m in (0.0, 1.0))
    >>> blend(old, new, 0.75).mean.item()
    0.25
    """
    return RunningStatistics(ema(old.mean, new.mean, decay), ema(old.var, new.var, decay))
