"""Online normalization: every example is normalized by the moments of the examples before it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar
from gradkit.layers.axes import channels, floating, wide
from gradkit.layers.statistics import RunningStatistics, blend, statistics
from gradkit.types import Scalar


class OnlineNormControl(NamedTuple):
    """The running controls v and u of the backward pass, one number per channel each; both start at 0.

    >>> OnlineNormControl(jnp.zeros(8), jnp.zeros(8)).u.shape
    (8,)
    """

    v: jax.Array
    u: jax.Array


@jax.custom_vjp
def _normalise(x: jax.Array, means: jax.Array, factors: jax.Array, control: OnlineNormControl, rate: Any) -> jax.Array:
    """(x - mean) factor for x (examples, positions, channels), with numbers per example and channel."""
    return (x - means[:, None]) * factors[:, None]


def _forward(x: jax.Array, means: jax.Array, factors: jax.Array, control: Any, rate: Any) -> tuple[jax.Array, Any]:
    y = _normalise(x, means, factors, control, rate)
    return y, (y, factors, control, rate)


def _backward(kept: Any, g: jax.Array) -> tuple[Any, ...]:
    y, factors, control, rate = kept

    def one(c: OnlineNormControl, example: Any) -> tuple[OnlineNormControl, jax.Array]:
        g, y, factor = example
        h = g - rate * c.v.reshape(1, -1) * y
        v = c.v + jnp.mean(h * y, axis=0)
        d = h * factor.reshape(1, -1) - rate * c.u.reshape(1, -1)
        return OnlineNormControl(v, c.u + jnp.mean(d, axis=0)), d

    control, dx = jax.lax.scan(one, control, (g, y, factors))
    return dx, jnp.zeros_like(factors), jnp.zeros_like(factors), control, jnp.zeros_like(rate)


_normalise.defvjp(_forward, _backward)


def online_norm(
    x: Any,
    scale: Scalar,
    bias: Any,
    state: RunningStatistics,
    control: OnlineNormControl,
    *,
    decay: Scalar = 0.999,
    backward_decay: Scalar = 0.99,
    eps: Scalar = 1e-5,
    bound: Any = "layer_scaling",
    use_running_average: bool = False,
) -> tuple[jax.Array, RunningStatistics]:
    """Normalization of channels without a batch: also for one example at a time.

    Equations, example by example in both passes; bars are moments over the positions of an example, and g is the
    gradient with respect to y:

        y      = (x - mu) / sqrt(s2 + eps)                     forward; mu, s2 from the examples before
        s2    <- decay s2 + (1 - decay) var_bar(x) + decay (1 - decay) (x_bar - mu)^2
        mu    <- decay mu + (1 - decay) x_bar

        g'     = g - (1 - backward_decay) v y                  backward
        v     <- v + mean_bar(g' y)
        dx     = g' / sqrt(s2 + eps) - (1 - backward_decay) u
        u     <- u + mean_bar(dx)

    Then each example is divided by its root mean square over all features (layer scaling), or clamped.

    Args:
      x: activations (examples, ..., channels); the result depends on the order of the examples.
      scale: one number per channel.
      bias: one number per channel.
      state: `RunningStatistics(mean, var)`; start at 0 and 1.
      control: `OnlineNormControl(v, u)`; start at 0. THE DERIVATIVE WITH RESPECT TO IT IS NO DERIVATIVE: it is the
        control of the next step, to be stored as it is.
      decay: decay of the moments, in [0, 1]. Default 0.999 (official code; its recurrent networks have 8191 / 8192).
      backward_decay: decay of the controls, in [0, 1]. Default 0.99 (official code; its recurrent networks have
        31 / 32).
      eps: added to variances, > 0. Default 1e-5.
      bound: against the exponential growth of activations with depth: "layer_scaling", a number > 0 to clamp them at,
        or None. Default "layer_scaling" (paper and official experiments; the official class clamps at 5).
      use_running_average: True at inference: x is normalized by the moments, which do not change. Default False.

    Returns:
      (y, state), y in the shape and dtype of x. State: four words per channel. There are two loops over the examples,
      whose order differs for a sharded batch: normalize on each device separately.

    Raises:
      ValueError: shapes that do not fit; an argument outside its range.

    Example:
      >>> start, zero = RunningStatistics(jnp.zeros(1), jnp.ones(1)), jnp.zeros(1)
      >>> x = jnp.array([[2.0], [2.0]])
      >>> y, _ = online_norm(x, zero + 1, zero, start, OnlineNormControl(zero, zero), decay=0.5, bound=None)
      >>> [round(float(v), 3) for v in y[:, 0]]  # (2 - 0) / 1, then (2 - 1) / sqrt(0.5 + 0.25 * 4)
      [2.0, 0.816]

    Reference: Chiley et al. Online Normalization for Training Neural Networks. 2019, arXiv 1905.05894.
    """
    checks.instance("state", state, RunningStatistics)
    checks.instance("control", control, OnlineNormControl)
    checks.arrays(x=x, scale=scale, bias=bias)
    checks.switch(use_running_average=use_running_average)
    x = floating("x", x)
    checks.real("decay", decay, "[0, 1]")
    checks.real("backward_decay", backward_decay, "[0, 1]")
    checks.real("eps", eps, "(0, inf)")
    if isinstance(bound, str):
        checks.choice("bound", bound, ("layer_scaling",))
    elif bound is not None:
        checks.real("bound", bound, "(0, inf)")
    if x.ndim < 2:
        raise ValueError(f"x must have shape (examples, ..., channels), got {x.shape}")
    z = wide(x).reshape(x.shape[0], -1, x.shape[-1])
    old = RunningStatistics(*(r.astype(z.dtype) for r in statistics(state, z)))
    c = OnlineNormControl(*(channels("control", r, z).reshape(-1) for r in control))
    d = jnp.asarray(decay).astype(z.dtype)

    def step(r: RunningStatistics, example: jax.Array) -> tuple[RunningStatistics, RunningStatistics]:
        bar = jnp.mean(example, axis=0)
        var = jnp.mean(jnp.square(example - bar.reshape(1, -1)), axis=0)
        new = blend(r, RunningStatistics(bar, var), d)
        return new._replace(var=new.var + d * (1 - d) * jnp.square(bar - r.mean)), r

    if use_running_average:
        new, before = old, RunningStatistics(*(jnp.broadcast_to(r.reshape(1, -1), (len(z), r.size)) for r in old))
    else:
        new, before = jax.lax.scan(step, old, jax.lax.stop_gradient(z))
    factors = jax.lax.rsqrt(before.var + scalar(eps, z))
    y = _normalise(z, before.mean, factors, c, 1 - jnp.asarray(backward_decay).astype(z.dtype)).reshape(x.shape)
    y = y * channels("scale", scale, y) + channels("bias", bias, y)
    if bound == "layer_scaling":
        own = tuple(range(1, y.ndim))
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=own, keepdims=True) + scalar(eps, y))
    elif bound is not None:
        y = jnp.clip(y, -scalar(bound, y), scalar(bound, y))
    new = RunningStatistics(*(r.astype(s.dtype) for r, s in zip(new, state, strict=True)))
    return y.astype(x.dtype), jax.lax.stop_gradient(new)


_C: Any = jax.ShapeDtypeStruct((8,), "float32")
register(
    online_norm,
    form="layer",
    paper=Paper("Online Normalization for Training Neural Networks", "Chiley et al.", 2019, "1905.05894"),
    example={
        "x": jax.ShapeDtypeStruct((16, 8), "float32"),
        "scale": _C,
        "bias": _C,
        "state": RunningStatistics(_C, _C),
        "control": OnlineNormControl(_C, _C),
    },
)
