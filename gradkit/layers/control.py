"""Normalisation by numbers that are not of this batch, whose backward pass has a running control of its own.

    z  = x r                                        r given, a constant of the derivative
    h  = g - rate e z                               g the gradient with respect to z, e the control (one per channel)
    dx = h r
    e' = what `absorb` makes of e and the mean of h z (or of g z) over rows

A backward pass cannot write a state; what comes back "as the gradient with respect to e" is e' itself, to be stored.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def controlled(x: jax.Array, r: jax.Array, e: jax.Array, rate: jax.Array, windowed: bool) -> jax.Array:
    """x r over rows of x (rows, channels).

    Args:
      x: rows.
      r: factor per channel.
      e: the control, (channels,), which grows by the mean of h z; or, `windowed`, the last means of g z, newest first,
        (window, channels), of which the arithmetic mean, with this one, is subtracted.
      rate: share of the control that is subtracted.
      windowed: which of the two.
    """
    return x * r.reshape(1, -1)


def _forward(x: jax.Array, r: jax.Array, e: jax.Array, rate: jax.Array, windowed: bool) -> tuple[jax.Array, Any]:
    z = x * r.reshape(1, -1)
    return z, (z, r, e, rate)


def _backward(windowed: bool, kept: Any, g: jax.Array) -> tuple[Any, ...]:
    z, r, e, rate = kept

    def without(control: jax.Array) -> jax.Array:
        return g - rate.astype(g.dtype) * control.astype(g.dtype).reshape(1, -1) * z

    if windowed:
        now = jnp.mean(g * z, axis=0).astype(e.dtype)
        after = jnp.concatenate([now.reshape(1, -1), e[:-1]])
        h = without(jnp.mean(after, axis=0))
    else:
        h = without(e)
        after = e + jnp.mean(h * z, axis=0).astype(e.dtype)
    return h * r.reshape(1, -1), jnp.zeros_like(r), after, jnp.zeros_like(rate)


controlled.defvjp(_forward, _backward)
