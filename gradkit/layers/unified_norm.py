"""Unified normalization: PowerNorm with windows in place of running means, without outliers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import increment, scalar
from gradkit.layers.axes import channels, floating, wide
from gradkit.layers.control import controlled
from gradkit.types import Scalar

PAPER = Paper("Unified Normalization for Accelerating and Stabilizing Transformers", "Yang et al.", 2022, "2208.01313")


class UnifiedNormState(NamedTuple):
    """The number of training steps, and the quadratic means of the last batches, newest first, (window, channels); they
    start at 0 and 1.

    >>> UnifiedNormState(jnp.zeros((), jnp.int32), jnp.ones((4, 8))).mean_squares.shape
    (4, 8)
    """

    count: jax.Array
    mean_squares: jax.Array


def _means(window: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The geometric mean, arithmetic mean and variance of every channel."""
    tiny = jnp.finfo(window.dtype).tiny
    geometric = jnp.exp(jnp.mean(jnp.log(jnp.maximum(window, tiny)), axis=0))
    return geometric, jnp.mean(window, axis=0), jnp.var(window, axis=0)


def unified_norm(
    x: Any,
    scale: Scalar,
    bias: Any,
    state: UnifiedNormState,
    control: Any,
    *,
    warmup_steps: int = 4000,
    clamp: Scalar = 5.0,
    eps: Scalar = 1e-5,
    use_running_average: bool = False,
) -> tuple[jax.Array, UnifiedNormState]:
    """Batch normalization for Transformers by the geometric mean of a few batches.

    Equations, with the quadratic mean b of this batch, the arithmetic mean A and the variance V of the quadratic means
    of the last `window` batches, all in units of A, and the gradient g with respect to z:

        q   = geometric mean of the quadratic means of the last `window` batches, this one included
        q  <- b min(max(q / b, 1 / clamp), clamp)
        q  <- b                                                 where A - q > window V (an outlier), and in the first
                                                                `warmup_steps` steps
        z   = x / sqrt(q + eps),   y = scale z + bias
        dx  = (g - e z) / sqrt(q + eps)
        e   = arithmetic mean of the last `window` means of g z, this one included

    Args:
      x: activations (examples, ..., channels).
      scale: one number per channel.
      bias: one number per channel.
      state: `UnifiedNormState(count, mean_squares)`; start at 0 and 1, of shape (window, channels). The paper's
        window is 4.
      control: the last means of g z, newest first, (window, channels), 0 at the start. THE DERIVATIVE WITH RESPECT TO
        IT IS NO DERIVATIVE: it is the control of the next step, to be stored as it is.
      warmup_steps: steps with the quadratic mean of the batch, >= 0. Default 4000 (official code).
      clamp: largest ratio of the window's mean to that of the batch, and of its reciprocal, >= 1. Default 5 (official
        code).
      eps: added to the quadratic mean, > 0. Default 1e-5.
      use_running_average: True at inference: x is normalized by the window, which does not change. Default False.

    Returns:
      (y, state), y in the shape and dtype of x. State: two windows of a word per channel.

    Raises:
      ValueError: shapes that do not fit; an argument outside its range.

    Example:
      >>> start = UnifiedNormState(jnp.zeros((), jnp.int32), jnp.array([[16.0], [1.0]]))
      >>> one, window = jnp.ones(1), jnp.zeros((2, 1))
      >>> y, _ = unified_norm(jnp.array([[2.0], [2.0]]), one, 0 * one, start, window, warmup_steps=0)
      >>> print(y[:, 0].round(3))  # the batch has 4, the one before had 16: x / sqrt(sqrt(4 * 16))
      [0.707 0.707]

    Reference: Yang et al. Unified Normalization for Accelerating and Stabilizing Transformers. 2022, arXiv 2208.01313.
    The test of outliers is relative to the arithmetic mean, so that it does not depend on the unit of x.
    """
    checks.instance("state", state, UnifiedNormState)
    checks.arrays(x=x, scale=scale, bias=bias, control=control)
    checks.switch(use_running_average=use_running_average)
    x = floating("x", x)
    checks.integer("warmup_steps", warmup_steps)
    checks.real("clamp", clamp, "[1, inf)")
    checks.real("eps", eps, "(0, inf)")
    rows = wide(x).reshape(-1, x.shape[-1]) if x.ndim > 1 else x
    windows = (floating("mean_squares", state.mean_squares), floating("control", control))
    if x.ndim < 2 or any(w.ndim != 2 or w.shape[0] < 1 or w.shape[1] != x.shape[-1] for w in windows):
        shapes = [w.shape for w in windows]
        raise ValueError(f"x must have channels last, and windows shape (window, channels), got {x.shape}, {shapes}")
    old, e = (w.astype(rows.dtype) for w in windows)
    if use_running_average:
        new, q = state, _means(old)[0]
    else:
        b = jax.lax.stop_gradient(jnp.mean(jnp.square(rows), axis=0))
        window = jnp.concatenate([b.reshape(1, -1), old[:-1]])
        q, A, V = _means(window)
        relative = jnp.where(A > 0, A, jnp.ones_like(A))
        skip = ((A - q) / relative > window.shape[0] * V / jnp.square(relative)) | (state.count < warmup_steps)
        c = scalar(clamp, b)
        q = jnp.where(skip, b, jnp.minimum(jnp.maximum(q, b / c), b * c))
        new = UnifiedNormState(increment(state.count), window.astype(windows[0].dtype))
    r = jax.lax.rsqrt(jax.lax.stop_gradient(q) + scalar(eps, q))
    z: Any = controlled(rows, r, e, jnp.ones((), rows.dtype), True)
    z = z.reshape(x.shape)
    y = z * channels("scale", scale, z) + channels("bias", bias, z)
    return y.astype(x.dtype), jax.lax.stop_gradient(new)


_COUNT: Any = jax.ShapeDtypeStruct((), "int32")
_C: Any = jax.ShapeDtypeStruct((8,), "float32")
_W: Any = jax.ShapeDtypeStruct((4, 8), "float32")
register(
    unified_norm,
    form="layer",
    paper=PAPER,
    example={
        "x": jax.ShapeDtypeStruct((16, 8), "float32"),
        "scale": _C,
        "bias": _C,
        "state": UnifiedNormState(_COUNT, _W),
        "control": _W,
    },
)
