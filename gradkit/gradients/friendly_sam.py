"""Friendly SAM: the step uphill leaves out what gradients of all minibatches have in common."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import cast, scalar, zeros
from gradkit.gradients.replicas import own_copy
from gradkit.gradients.sam import ascent
from gradkit.gradients.stateful import Evaluations, StatefulGradient, as_params
from gradkit.types import Scalar

PAPER = Paper("Friendly Sharpness-Aware Minimization", "Li et al.", 2024, "2403.12350")


class FriendlySamState(NamedTuple):
    """Whether there was a gradient yet, and the running mean of gradients."""

    started: jax.Array
    mean: Any


def friendly_sam(
    loss_fn: Callable[..., Any],
    rho: Scalar = 0.05,
    *,
    sigma: Scalar = 1.0,
    decay: Scalar = 0.9,
    memory: str = "previous",
    has_aux: bool = False,
    axis_name: Any = None,
) -> StatefulGradient:
    """SAM that climbs along the noise of the minibatch, and not along the gradient of all data.

    Equations, with g the gradient at x and m the running mean of gradients:

        e = rho d / (|d| + 1e-12),  d = g - sigma m;  in the first call d = g
        result: the gradient at x + e, of the same minibatch
        m <- decay m + (1 - decay) g,  in the first call m = g;  "previous": after d, "current": before it

    Args:
      loss_fn: (params, *args) -> scalar, or (scalar, aux).
      rho: length of the step uphill, >= 0. Default 0.05, as `sam`. May be traced.
      sigma: how much of the mean is left out, >= 0. Default 1 (official code). May be traced.
      decay: of the mean, in [0, 1). Default 0.9 (official code: lmbda).
      memory: which mean is left out: the "previous" one (official code), or the "current" one, which has this gradient
        in it (paper). Default "previous".
      has_aux: whether `loss_fn` returns (scalar, aux). Default False.
      axis_name: axis of `vmap` or `shard_map` over whose members gradients are averaged, before the step uphill and
        after. Default None: each member has its own.

    Returns:
      `StatefulGradient(init, value_and_grad)`. init(params) -> state; value_and_grad(state, params, *args, **kwargs) ->
      (value or (value, aux), gradient, state), with value and aux at the parameters themselves. State: 1 word per
      parameter, and a flag. Two gradients a step; a norm of the whole tree.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> source = friendly_sam(lambda x, noise: jnp.sum((x - noise) ** 2) / 2, 0.5)
      >>> x = jnp.array([4.0, 0.0])
      >>> _, g, state = source.value_and_grad(source.init(x), x, jnp.zeros(2))  # that of SAM
      >>> print(g)
      [4.5 0. ]
      >>> _, g, state = source.value_and_grad(state, x, jnp.array([0.0, -3.0]))  # uphill along (0, 3)
      >>> print(g)
      [4.  3.5]

    Reference: Li et al. Friendly Sharpness-Aware Minimization. 2024, arXiv 2403.12350; official code nblt/F-SAM, commit
    0867879, which leaves out the mean before this gradient where the paper has the one with it.
    """
    checks.axis_name("axis_name", axis_name)
    checks.switch(has_aux=has_aux)
    checks.function("loss_fn", loss_fn)
    checks.real("rho", rho, "[0, inf)")
    checks.real("sigma", sigma, "[0, inf)")
    checks.real("decay", decay, "[0, 1)")
    checks.choice("memory", memory, ("previous", "current"))
    loss = Evaluations(loss_fn, has_aux, axis_name)

    def init(params: Any) -> FriendlySamState:
        return FriendlySamState(jnp.zeros((), bool), zeros(jax.tree.map(jnp.asarray, params)))

    def value_and_grad(
        state: FriendlySamState, params: Any, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any, FriendlySamState]:
        params = own_copy(params, axis_name)
        value, g = loss.here(params, args, kwargs)

        def averaged(m: jax.Array, g: jax.Array) -> jax.Array:
            return jnp.where(state.started, ema(m, g, decay), cast(g, m.dtype))

        mean = jax.tree.map(averaged, state.mean, g)
        left_out = state.mean if memory == "previous" else mean

        def noise(g: jax.Array, m: jax.Array) -> jax.Array:
            return jnp.where(state.started, g - scalar(sigma, g) * cast(m, g.dtype), g)

        new = loss.beside(params, ascent(jax.tree.map(noise, g, left_out), rho), args, kwargs)
        return value, as_params(new, params), FriendlySamState(jnp.ones((), bool), mean)

    return StatefulGradient(init, value_and_grad)


register(friendly_sam, form="program", paper=PAPER, golden=("modern/friendly_sam",))
