"""AI-SARAH: SARAH with step lengths that approximately minimise the norm of the next estimate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, scalar, widen
from gradkit.engine.matching import check_match
from gradkit.engine.norms import global_square, global_sums
from gradkit.types import Scalar

PAPER = Paper("AI-SARAH: Adaptive and Implicit Stochastic Recursive Gradient Methods", "Shi et al.", 2021, "2102.09700")


class AiSarahState(NamedTuple):
    """The estimate v; its current |v|^2, and that of the last full gradient; delta, 0 before the first step; the last
    step length."""

    estimate: Any
    square: jax.Array
    first_square: jax.Array
    delta: jax.Array
    step_size: jax.Array


class AiSarah(NamedTuple):
    """The method as pure functions.

    Attributes:
      init: full gradient -> state.
      step: (state, params, grad_fn) -> (params, state); grad_fn: params -> gradient of this step's batch.
      should_refresh: state -> whether the full gradient is due.
      refresh: (state, full gradient) -> state.
    """

    init: Callable[[Any], AiSarahState]
    step: Callable[[AiSarahState, Any, Callable[[Any], Any]], tuple[Any, AiSarahState]]
    should_refresh: Callable[[AiSarahState], jax.Array]
    refresh: Callable[[AiSarahState, Any], AiSarahState]


def _inner(a: Any, b: Any) -> jax.Array:
    return global_sums(jax.tree.map(lambda x, y: x * y, a, b))[0]


def newton_step(grad_fn: Callable[[Any], Any], w: Any, v: Any) -> jax.Array:
    """Newton's step length a~, from two derivatives of the gradient along v."""

    def along(a: jax.Array) -> Any:
        return grad_fn(jax.tree.map(lambda x, d: x - a.astype(x.dtype) * d.astype(x.dtype), w, v))

    one = jnp.ones((), jnp.result_type(float))

    def slope(a: jax.Array) -> Any:
        return jax.jvp(along, (a,), (one,))[1]

    first, second = jax.jvp(slope, (jnp.zeros_like(one),), (one,))
    first, second = widen(first), widen(second)
    curvature = 2 * _inner(first, first) + 2 * _inner(v, second)
    return divide(-2 * _inner(v, first), jnp.abs(curvature))


def ai_sarah(*, gamma: Scalar = 1 / 32, beta: Scalar = 0.999) -> AiSarah:
    """AI-SARAH: variance-reduced steps without a learning rate.

    Equations, with the loss f_S of the batch and its Hessian H; phi(a) is the square of the next estimate after a step
    of length a:

        phi(a) = |grad f_S(w - a v) - grad f_S(w) + v|^2
        phi'(0) = -2 v^T H v,   phi''(0) = 2 |H v|^2 + 2 v^T (d^2/da^2 of grad f_S(w - a v) at 0)
        a~ = - phi'(0) / |phi''(0)|                               one step of Newton's method from 0
        a = min(a~, a_max),   a_max = 1 / delta
        delta <- beta delta + (1 - beta) / a~,   1 / a~ in the first step
        w+ = w - a v,   v+ = grad f_S(w+) - grad f_S(w) + v

    The full gradient is computed again once |v|^2 < gamma |v_0|^2; delta is not reset.

    Args:
      gamma: fraction of |v_0|^2 below which the full gradient is due, in (0, 1). Default 1/32 (paper).
      beta: decay of the running mean of inverse steps that bounds the next, in [0, 1). Default 0.999 (paper).

    Returns:
      Four pure functions: the user's loop calls `init(full_gradient)`, then for every batch
      `step(state, params, grad_fn)`, and `refresh(state, full_gradient)` where `should_refresh(state)`. A step whose
      a~ is not positive or not finite, for example for a loss that is not convex, has the length a_max, and 0 if it is
      the first step. State: 1 word per parameter and four numbers. It costs two gradients of the batch and two
      derivatives of a gradient. Collectives: four scalars per step.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> method, w = ai_sarah(), jnp.array([1.0, 1.0])
      >>> grad_fn = lambda w: jnp.array([1.0, 3.0]) * w
      >>> w, state = method.step(method.init(grad_fn(w)), w, grad_fn)
      >>> round(float(state.step_size), 4)  # v^T H v / |H v|^2
      0.3415

    Reference: Shi et al. AI-SARAH: Adaptive and Implicit Stochastic Recursive Gradient Methods. 2021, arXiv 2102.09700.
    """
    checks.real("gamma", gamma, "(0, 1)")
    checks.real("beta", beta, "[0, 1)")

    def init(full_gradient: Any) -> AiSarahState:
        zero = jnp.zeros((), jnp.result_type(float))
        return refresh(AiSarahState(None, zero, zero, zero, zero), full_gradient)

    def refresh(state: AiSarahState, full_gradient: Any) -> AiSarahState:
        v = widen(full_gradient)
        square = global_square(v).astype(state.delta.dtype)
        return state._replace(estimate=v, square=square, first_square=square)

    def should_refresh(state: AiSarahState) -> jax.Array:
        return state.square < scalar(gamma, state.square) * state.first_square

    def step(state: AiSarahState, params: Any, grad_fn: Callable[[Any], Any]) -> tuple[Any, AiSarahState]:
        v, dtype = state.estimate, state.delta.dtype
        check_match("ai_sarah", v, params)
        newton = newton_step(grad_fn, params, v).astype(dtype)
        fine = jnp.isfinite(newton) & (newton > 0)
        bounded = state.delta > 0
        longest = divide(jnp.ones((), dtype), state.delta)  # used only where there is a bound
        newton = jnp.where(fine, newton, longest)
        a = jnp.where(bounded, jnp.minimum(newton, longest), newton)
        inverse, b = divide(jnp.ones((), dtype), newton), scalar(beta, newton)
        delta = jnp.where(bounded, b * state.delta + (1 - b) * inverse, inverse)
        delta = jnp.where(fine, delta, state.delta)
        moved = jax.tree.map(lambda x, d: (x - a.astype(d.dtype) * d).astype(x.dtype), params, v)
        before, after = widen(grad_fn(params)), widen(grad_fn(moved))
        v = jax.tree.map(lambda new, old, v: new - old + v, after, before, v)
        return moved, AiSarahState(v, global_square(v).astype(dtype), state.first_square, delta, a)

    return AiSarah(init, step, should_refresh, refresh)


register(
    ai_sarah, form="program", paper=PAPER, words=1, notes="without a learning rate; functions for a loop of one's own"
)
