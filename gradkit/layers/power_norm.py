"""PowerNorm: normalization of channels by a running quadratic mean, with a backward pass of its own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import increment, scalar
from gradkit.layers.axes import channels, floating, wide
from gradkit.layers.control import controlled
from gradkit.types import Scalar


class PowerNormState(NamedTuple):
    """Number of training steps, and the running quadratic mean of every channel; start at 0 and 1.

    >>> PowerNormState(jnp.zeros((), jnp.int32), jnp.ones(8)).mean_square.shape
    (8,)
    """

    count: jax.Array
    mean_square: jax.Array


def power_norm(
    x: Any,
    scale: Scalar,
    bias: Any,
    state: PowerNormState,
    control: Any,
    *,
    decay: Scalar = 0.9,
    backward_decay: Scalar = 0.9,
    warmup_steps: int = 10000,
    eps: Scalar = 1e-5,
    use_running_average: bool = False,
) -> tuple[jax.Array, PowerNormState]:
    """Batch normalization for Transformers, whose batches differ too much for moments of one batch.

    Equations, with the running mean q of x^2 (in the first `warmup_steps` steps that of the batch), and the gradient g
    with respect to z:

        z   = x / sqrt(q + eps)
        y   = scale z + bias
        q  <- decay q + (1 - decay) mean(x^2)
        h   = g - (1 - backward_decay) e z
        dx  = h / sqrt(q + eps)
        e  <- e + mean(h z)                         per channel, over all examples and positions

    Args:
      x: activations (examples, ..., channels).
      scale: one number per channel.
      bias: one number per channel.
      state: `PowerNormState(count, mean_square)`; start at 0 and 1.
      control: e, one number per channel, 0 at the start. THE DERIVATIVE WITH RESPECT TO IT IS NO DERIVATIVE: it is the
        control of the next step, to be stored as it is.
      decay: decay of the running quadratic mean, in [0, 1]. Default 0.9 (official code).
      backward_decay: decay of the control, in [0, 1]. Default 0.9 (official code).
      warmup_steps: steps with the quadratic mean of the batch, >= 0. Default 10000 (official code's class default; its
        scripts for translation take the 8000 steps of the learning rate's warm-up).
      eps: added to the quadratic mean, > 0. Default 1e-5.
      use_running_average: True at inference: x is normalized by the running mean, which does not change. Default False.

    Returns:
      (y, state), y in the shape and dtype of x. State: two words per channel, one of them the control.

    Raises:
      ValueError: shapes that do not fit; an argument outside its range.

    Example:
      >>> start, one = PowerNormState(jnp.zeros((), jnp.int32), jnp.full(1, 4.0)), jnp.ones(1)
      >>> f = lambda x, e: jnp.sum(power_norm(x, one, 0 * one, start, e, warmup_steps=0)[0])
      >>> dx, control = jax.grad(f, argnums=(0, 1))(jnp.array([[2.0], [6.0]]), jnp.zeros(1))
      >>> print(dx[:, 0].round(3), control.round(3))  # 1 / 2, and the mean of z = 1, 3
      [0.5 0.5] [2.]

    Reference: Shen et al. PowerNorm: Rethinking Batch Normalization in Transformers. 2020, arXiv 2003.07845. Departures
    from the released code, which divides the gradient by the quadratic mean of the batch in place of the running one,
    and updates that twice in a step of the warm-up. Its scaling of groups of channels before the layer is not part of
    this function.
    """
    checks.instance("state", state, PowerNormState)
    checks.arrays(x=x, scale=scale, bias=bias, control=control)
    checks.switch(use_running_average=use_running_average)
    x = floating("x", x)
    checks.real("decay", decay, "[0, 1]")
    checks.real("backward_decay", backward_decay, "[0, 1]")
    checks.integer("warmup_steps", warmup_steps)
    checks.real("eps", eps, "(0, inf)")
    if x.ndim < 2:
        raise ValueError(f"x must have shape (examples, ..., channels), got {x.shape}")
    rows = wide(x).reshape(-1, x.shape[-1])
    q, e = (channels(n, v, rows).reshape(-1) for n, v in (("mean_square", state.mean_square), ("control", control)))
    new, used = state, q
    if not use_running_average:
        batch = jax.lax.stop_gradient(jnp.mean(jnp.square(rows), axis=0))
        used = jnp.where(state.count < warmup_steps, batch, q)
        new = PowerNormState(increment(state.count), ema(q, batch, decay).astype(state.mean_square.dtype))
    r = jax.lax.rsqrt(jax.lax.stop_gradient(used) + scalar(eps, q))
    z: Any = controlled(rows, r, e, 1 - jnp.asarray(backward_decay).astype(rows.dtype), False)
    z = z.reshape(x.shape)
    y = z * channels("scale", scale, z) + channels("bias", bias, z)
    return y.astype(x.dtype), jax.lax.stop_gradient(new)


_COUNT: Any = jax.ShapeDtypeStruct((), "int32")
_C: Any = jax.ShapeDtypeStruct((8,), "float32")
register(
    power_norm,
    form="layer",
    paper=Paper("PowerNorm: Rethinking Batch Normalization in Transformers", "Shen et al.", 2020, "2003.07845"),
    example={
        "x": jax.ShapeDtypeStruct((16, 8), "float32"),
        "scale": _C,
        "bias": _C,
        "state": PowerNormState(_COUNT, _C),
        "control": _C,
    },
)
