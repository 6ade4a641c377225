"""LookSAM: the part of SAM's gradient across the plain one is computed now and then, and used again in between."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import cast, divide, increment, scalar, zeros
from gradkit.engine.norms import global_norm
from gradkit.gradients.gsam import across
from gradkit.gradients.replicas import own_copy
from gradkit.gradients.sam import ascent
from gradkit.gradients.stateful import Evaluations, StatefulGradient, as_params
from gradkit.types import Scalar

PAPER = Paper("Towards Efficient and Scalable Sharpness-Aware Minimization", "Liu et al.", 2022, "2203.02714")


class LooksamState(NamedTuple):
    """Number of calls, and g_v, the part of the last gradient of SAM across the plain one."""

    count: jax.Array
    across: Any


def looksam(
    loss_fn: Callable[..., Any],
    rho: Scalar = 0.05,
    *,
    alpha: Scalar = 0.7,
    update_interval: int = 5,
    has_aux: bool = False,
    axis_name: Any = None,
) -> StatefulGradient:
    """SAM at the price of one gradient per step in most steps.

    Equations, with g the gradient at x, and p the one at x + rho g / (|g| + 1e-12), of the same minibatch:

        calls 0, k, 2 k, ...:   result p,  g_v = p - (<p, g> / |g|^2) g;  k the update_interval
        all others:             result g + alpha (|g| / |g_v|) g_v

    Norms and products run over the whole tree: g_v changes more slowly than g, and is the direction in which the loss
    is sharp.

    Args:
      loss_fn: (params, *args) -> scalar, or (scalar, aux).
      rho: length of the step uphill, >= 0. Default 0.05, as `sam`. May be traced.
      alpha: length of the part across, relative to the gradient, >= 0. Default 0.7 (paper). May be traced.
      update_interval: calls from one gradient of SAM to the next, >= 1. Default 5 (paper: k).
      has_aux: whether `loss_fn` returns (scalar, aux). Default False.
      axis_name: axis of `vmap` or `shard_map` over whose members gradients are averaged, before the step uphill and
        after. Default None: each member has its own.

    Returns:
      `StatefulGradient(init, value_and_grad)`. init(params) -> state; value_and_grad(state, params, *args, **kwargs) ->
      (value or (value, aux), gradient, state), with value and aux at the parameters themselves. State: 1 word per
      parameter, and a counter. 1 + 1 / update_interval gradients per step where the step is not under `vmap`; two
      norms and a product of the whole tree.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> curvature = jnp.array([1.0, 4.0])
      >>> source = looksam(lambda x: jnp.sum(curvature * x**2) / 2, 0.5, alpha=1.0)
      >>> x = jnp.array([3.0, 1.0])
      >>> _, g, state = source.value_and_grad(source.init(x), x)  # that of SAM
      >>> [round(float(v), 2) for v in g]
      [3.3, 5.6]
      >>> _, g, state = source.value_and_grad(state, x)  # (3, 4), and as much across
      >>> [round(float(v), 2) for v in g]
      [-1.0, 7.0]

    Reference: Liu et al. Towards Efficient and Scalable Sharpness-Aware Minimization. 2022, arXiv 2203.02714, algorithm
    1. Public copies take norms and products per tensor; here they are those of the paper, over all of them.
    """
    checks.axis_name("axis_name", axis_name)
    checks.switch(has_aux=has_aux)
    checks.function("loss_fn", loss_fn)
    checks.real("rho", rho, "[0, inf)")
    checks.real("alpha", alpha, "[0, inf)")
    update_interval = checks.integer("update_interval", update_interval, 1)
    loss = Evaluations(loss_fn, has_aux, axis_name)

    def init(params: Any) -> LooksamState:
        return LooksamState(jnp.zeros((), jnp.int32), zeros(jax.tree.map(jnp.asarray, params)))

    def value_and_grad(state: LooksamState, params: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any, LooksamState]:
        params = own_copy(params, axis_name)
        value, g = loss.here(params, args, kwargs)

        def both(g: Any, _: Any) -> tuple[Any, Any]:
            p = loss.beside(params, ascent(g, rho), args, kwargs)
            return p, jax.tree.map(lambda a, b: cast(a, b.dtype), across(p, g), state.across)

        def one(g: Any, kept: Any) -> tuple[Any, Any]:
            n = divide(global_norm(g), global_norm(kept))
            n = scalar(alpha, n) * n
            return jax.tree.map(lambda g, v: g + cast(n, g.dtype) * cast(v, g.dtype), g, kept), kept

        new, kept = jax.lax.cond(state.count % update_interval == 0, both, one, g, state.across)
        return value, as_params(new, params), LooksamState(increment(state.count), kept)

    return StatefulGradient(init, value_and_grad)


register(looksam, form="program", paper=PAPER, golden=("modern/looksam",))
