"""Micro-batch training: weights with mean 0 and variance 1, and a batch norm that does not need a batch."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, scalar
from gradkit.layers.axes import Axis, channels, floating, unit_axes, wide
from gradkit.layers.statistics import RunningStatistics, blend, moments, statistics
from gradkit.types import Scalar

PAPER = Paper(
    "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
    "Qiao et al.",
    2019,
    "1903.10520",
)


def standardize_weight(
    w: Any, *, eps: Scalar = 1e-5, axis: Axis = None, ddof: int = 0, eps_in_sqrt: bool = True
) -> jax.Array:
    """Weight standardization: the weights of every output unit with mean 0 and variance 1.

    Equations, per output unit of n weights:

        W^  = (w - mean(w)) / sqrt(var(w) + eps)
        var = sum (w - mean)^2 / (n - ddof)

    It is for convolutions that a normalization follows; call it in the forward pass on the weights that are trained, or
    put it inside the chain as `decode` of `gk.reparameterize`.

    Args:
      w: the weights, dense (inputs, outputs) or a convolution (HWIO).
      eps: added to the variance, or to the standard deviation with `eps_in_sqrt=False`, >= 0. Default 1e-5. With 0, a
        unit of equal weights gives 0.
      axis: axes that make up a unit. Default None: all but the last. Of stacked layers, leave the stack out.
      ddof: 0 for the variance that divides by n (authors' TensorFlow code, BiT, timm), 1 for the one that divides by
        n - 1 (authors' torch code). Default 0.
      eps_in_sqrt: whether `eps` is added under the square root (BiT, timm). Default True; both codes of the authors add
        it outside.

    Returns:
      Weights of the shape and dtype of w. No state.

    Raises:
      ValueError: weights that are not floating point; axes they do not have; an argument outside its range.

    Example:
      >>> standardize_weight(jnp.array([[1.0, 5.0], [3.0, 5.0]])).round(3).tolist()
      [[-1.0, 0.0], [1.0, 0.0]]

    Reference: Qiao et al. Micro-Batch Training with Batch-Channel Normalization and Weight Standardization. 2019, arXiv
    1903.10520. `ddof=1, eps_in_sqrt=False` is the authors' torch code; `eps_in_sqrt=False` their TensorFlow code.
    """
    checks.arrays(w=w)
    checks.axes(axis=axis)
    checks.switch(eps_in_sqrt=eps_in_sqrt)
    w = floating("w", w)
    checks.real("eps", eps, "[0, inf)")
    checks.choice("ddof", ddof, (0, 1))
    own = unit_axes(w, axis)
    n = math.prod(w.shape[a] for a in own)
    x = wide(w)
    centred = x - jnp.mean(x, axis=own, keepdims=True) if x.size else x
    var = jnp.sum(jnp.square(centred), axis=own, keepdims=True) / max(n - ddof, 1)
    e = scalar(eps, x)
    deviation = _root(var + e) if eps_in_sqrt else _root(var) + e
    return divide(centred, jnp.broadcast_to(deviation, x.shape)).astype(w.dtype)


def _root(x: jax.Array) -> jax.Array:
    """The square root, whose derivative at 0 is 0 instead of infinite."""
    safe = jnp.where(x > 0, x, jnp.ones_like(x))
    return jnp.where(x > 0, jnp.sqrt(safe), jnp.zeros_like(x))


def batch_channel_norm(
    x: Any,
    scale: Scalar,
    bias: Any,
    state: RunningStatistics,
    *,
    num_groups: int = 32,
    decay: Scalar = 0.9,
    eps: Scalar = 1e-5,
    estimated: bool = True,
    use_running_average: bool = False,
) -> tuple[jax.Array, RunningStatistics]:
    """Batch normalization by running statistics, then normalization of groups of channels, for small batches.

    Equations, with running mu and s^2; the gradient flows through x alone:

        mu  <- decay mu  + (1 - decay) mean_batch(x)
        s^2 <- decay s^2 + (1 - decay) var_batch(x)
        x^  =  (x - mu) / sqrt(s^2 + eps)                                           per channel
        y   =  scale (x^ - mean_group(x^)) / sqrt(var_group(x^) + eps) + bias       per example and group of channels

    Args:
      x: activations (examples, ..., channels).
      scale: one number per channel.
      bias: one number per channel.
      state: `RunningStatistics(mean, var)`; start at 0 and 1.
      num_groups: the number of groups of channels, >= 1; must divide the number of channels. Default 32, as in group
        normalization.
      decay: decay of the running statistics, in [0, 1]. Default 0.9.
      eps: added to variances, > 0. Default 1e-5.
      estimated: whether training normalizes by the running statistics (micro-batches). Default True; False: by those of
        the batch, as batch normalization does, for large batches.
      use_running_average: True at inference: x is normalized by the running statistics, which do not change. Default
        False.

    Returns:
      (y, state), y in the shape and dtype of x. State: two words per channel. Collectives: two all-reduces for the
      moments of a sharded batch.

    Raises:
      ValueError: shapes that do not fit; groups that do not divide the channels; an argument outside its range.

    Example:
      >>> x = jnp.array([[1.0, 3.0], [5.0, 9.0]])
      >>> start = RunningStatistics(jnp.zeros(2), jnp.ones(2))
      >>> y, _ = batch_channel_norm(x, jnp.ones(2), jnp.zeros(2), start, num_groups=1)
      >>> y.round(3).tolist()
      [[-1.0, 1.0], [-1.0, 1.0]]

    Reference: Qiao et al. Micro-Batch Training with Batch-Channel Normalization and Weight Standardization. 2019, arXiv
    1903.10520. There is one scale and bias, at the end: the paper has another pair between the two normalizations.
    """
    checks.instance("state", state, RunningStatistics)
    checks.arrays(x=x, scale=scale, bias=bias)
    checks.switch(estimated=estimated, use_running_average=use_running_average)
    x = floating("x", x)
    checks.integer("num_groups", num_groups, 1)
    checks.real("decay", decay, "[0, 1]")
    checks.real("eps", eps, "(0, inf)")
    if x.ndim < 2 or x.shape[-1] % num_groups:
        raise ValueError(f"num_groups must divide the channels, the last axis of x, got {num_groups} for {x.shape}")
    z = wide(x)
    old = statistics(state, z)
    batch = moments(z)
    if use_running_average:
        new, by = old, old
    else:
        new = blend(old, batch, decay)
        by = jax.lax.stop_gradient(new) if estimated else batch
    z = (z - channels("mean", by.mean, z)) * jax.lax.rsqrt(channels("var", by.var, z) + scalar(eps, z))
    split = z.reshape(*z.shape[:-1], num_groups, z.shape[-1] // num_groups)
    own = (*range(1, z.ndim - 1), z.ndim)
    centred = split - jnp.mean(split, axis=own, keepdims=True)
    var = jnp.mean(jnp.square(centred), axis=own, keepdims=True)
    z = (centred * jax.lax.rsqrt(var + scalar(eps, z))).reshape(z.shape)
    y = z * channels("scale", scale, z) + channels("bias", bias, z)
    return y.astype(x.dtype), jax.lax.stop_gradient(new)


_X = jax.ShapeDtypeStruct((16, 8), "float32")
_C: Any = jax.ShapeDtypeStruct((8,), "float32")
register(
    standardize_weight,
    form="layer",
    paper=PAPER,
    golden=("large_batch/weight_standardization",),
    example={"w": _X},
    notes="inside a chain: gk.reparameterize(inner, encode, decode=standardize_weight on every kernel)",
)
register(
    batch_channel_norm,
    form="layer",
    paper=PAPER,
    example={"x": _X, "scale": _C, "bias": _C, "state": RunningStatistics(_C, _C), "num_groups": 2},
)
