"""How the moments of activations change from block to block of a network at initialization."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.arrays import reals

PAPER = Paper(
    "Characterizing signal propagation to close the performance gap in unnormalized ResNets",
    "Brock, De, Smith",
    2021,
    "2101.08692",
)


class SignalPropagation(NamedTuple):
    """Of every block, in order: the average squared mean and the average variance of the channels of its output, and
    the average variance at the end of its residual branch; NaN for a block without one."""

    squared_mean: jax.Array
    variance: jax.Array
    branch_variance: jax.Array


def _moments(x: Any, channel_axis: int) -> tuple[jax.Array, jax.Array]:
    x = reals("signal_propagation", "x", x)
    if not -x.ndim <= channel_axis < x.ndim:
        raise ValueError(
            f"signal_propagation: channel_axis must be an axis of activations, got {channel_axis} for shape {x.shape}"
        )
    others = tuple(i for i in range(x.ndim) if i != channel_axis % x.ndim)
    return jnp.mean(jnp.square(jnp.mean(x, axis=others))), jnp.mean(jnp.var(x, axis=others))


def signal_propagation(blocks: Sequence[Callable[[Any], Any]], x: Any, *, channel_axis: int = -1) -> SignalPropagation:
    """A signal propagation plot: the moments of channels behind every block, for random inputs.

        squared mean    mean over channels of (mean over examples and places of x)^2
        variance        mean over channels of var over examples and places of x
        branch          the variance at the end of the residual branch, before it is added

    In a network with batch normalization the variance grows by that of a branch, about 1, with every block, and begins
    again where a shortcut is normalized. Squared means that grow show activations of one sign.

    Args:
      blocks: functions x -> x, or x -> (x, end of the branch), at their initial parameters.
      x: inputs, floating point: (examples, ..., channels), such as standard normal numbers.
      channel_axis: of the channels. Default -1, the last.

    Returns:
      `SignalPropagation` of three arrays (blocks,), in float32 or wider. One forward pass; can be jitted.

    Raises:
      ValueError: no blocks; an axis that activations do not have; activations that are not floating point.

    Example:
      >>> double = lambda x: (x + x, x)
      >>> found = signal_propagation([double, double], jnp.array([[1.0], [-1.0]]))
      >>> found.variance.tolist(), found.branch_variance.tolist()
      ([4.0, 16.0], [1.0, 4.0])

    Reference: Brock, De, Smith. Characterizing signal propagation to close the performance gap in unnormalized ResNets.
    2021, arXiv 2101.08692.
    """
    checks.arrays(x=x)
    checks.sequence_of_functions(blocks=blocks)
    checks.integer("channel_axis", channel_axis, -(2**31))
    if not len(blocks):
        raise ValueError("signal_propagation: blocks must be functions, got none; write [layer_1, layer_2]")
    rows = []
    for block in blocks:
        checks.function("blocks", block)
        out = block(x)
        x, branch = out if isinstance(out, tuple) else (out, None)
        squared_mean, variance = _moments(x, channel_axis)
        end = jnp.full_like(variance, jnp.nan) if branch is None else _moments(branch, channel_axis)[1]
        rows.append((squared_mean, variance, end))
    return SignalPropagation(*(jnp.stack(column) for column in zip(*rows, strict=True)))


register(signal_propagation, form="program", paper=PAPER)
