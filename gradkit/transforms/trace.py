"""Momentum: a decaying sum of past updates.

v_1 = g_1                                   (or (1 - dampening) g_1)
v_t = momentum v_{t-1} + (1 - dampening) g_t
u_t = v_t,   or with Nesterov's look-ahead  g_t + momentum v_t
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import cast, counter, increment, once_per_dtype, scalar, transformation, zeros
from gradkit.types import DTypeLike, Scalar


@functools.partial(jax.jit, inline=True)
def _decayed_sum(v: jax.Array, g: jax.Array, momentum: Any, share: Any) -> jax.Array:
    return cast(scalar(momentum, g) * cast(v, g.dtype) + (g if share is None else g * share), v.dtype)


@functools.partial(jax.jit, inline=True)
def _ahead(g: jax.Array, v: jax.Array, momentum: Any) -> jax.Array:
    return g + scalar(momentum, g) * cast(v, g.dtype)


class TraceState(NamedTuple):
    """Number of updates made (None where the first is like all others), and the momentum."""

    count: Any
    trace: Any


def trace(
    momentum: Scalar = 0.9,
    *,
    dampening: Scalar | None = None,
    dampen_first: bool = False,
    nesterov: bool = False,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces updates by their decaying sum.

    Args:
      momentum: decay of the sum, in [0, 1]. Default 0.9.
      dampening: share of each new update that is left out, in [0, 1). Default None, as 0.
      dampen_first: whether dampening holds for the first update too (SGDP, XGrad); torch's SGD, the
        default here, starts the sum with the whole first gradient.
      nesterov: whether to look ahead: u_t = g_t + momentum v_t. Default False.
      mu_dtype: dtype in which the sum is kept between steps; arithmetic stays in float32. Default: float32,
        or float64 for float64 parameters.

    Returns:
      A transformation. State: 1 word per parameter, and a counter with `dampening`, unless the first update is
      dampened too. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = trace(0.5)
      >>> g = jnp.array(1.0)
      >>> state = tx.init(g)
      >>> for _ in range(3):
      ...     updates, state = tx.update(g, state)
      >>> float(updates)
      1.75

    Reference: Polyak. Some methods of speeding up the convergence of iteration methods. 1964. Sutskever et
    al. On the importance of initialization and momentum in deep learning. 2013. optax's trace has no
    dampening and keeps the sum in the parameters' dtype.
    """
    checks.switch(dampen_first=dampen_first, nesterov=nesterov)
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("momentum", momentum, "[0, 1]")
    checks.real("dampening", dampening, "[0, 1)", optional=True)
    undampened = checks.absent(dampening)

    def init(params: optax.Params) -> TraceState:
        return TraceState(counter(not undampened and not dampen_first), zeros(params, mu_dtype))

    def update(updates: Any, state: TraceState, params: Any = None, **extra: Any) -> tuple[Any, TraceState]:
        del params, extra

        def taken(g: jax.Array) -> jax.Array:
            share = 1 - scalar(jnp.asarray(dampening), g)
            return share if dampen_first else jnp.where(state.count == 0, jnp.ones_like(share), share)

        share = once_per_dtype(lambda g: None if undampened else taken(g))
        v = jax.tree.map(lambda v, g: _decayed_sum(v, g, momentum, share(g)), state.trace, updates)
        state = TraceState(increment(state.count), v)
        if nesterov:
            return jax.tree.map(lambda g, v: _ahead(g, v, momentum), updates, v), state
        return jax.tree.map(lambda v, g: cast(v, g.dtype), v, updates), state

    return transformation("trace", init, update, complex_leaves=True)


register(
    trace,
    form="primitive",
    paper=Paper("On the importance of initialization and momentum in deep learning", "Sutskever et al.", 2013),
    words=1,
    golden=("adaptive/sgd",),
)
