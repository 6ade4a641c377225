"""EMA-Nesterov: Nesterov's look-ahead along a moving average of the steps, around any optimizer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.accumulators import ema
from gradkit.engine.anchors import scalar_dtype
from gradkit.engine.core import at_count, cast, increment, inside, transformation, zeros
from gradkit.engine.mismatches import check_fit
from gradkit.types import Scalar, ScalarOrSchedule

NAME = "ema_nesterov"


class EmaNesterovState(NamedTuple):
    """Number of updates; m, and the beta of the look-ahead along it; the state of the optimizer."""

    count: jax.Array
    mu: Any
    beta: jax.Array
    inner: Any

    def eval_params(self, params: Any) -> Any:
        """The true parameters x."""

        def true(y: jax.Array, m: jax.Array) -> jax.Array:
            return (y.astype(m.dtype) - self.beta.astype(m.dtype) * m).astype(y.dtype)

        return jax.tree.map(true, params, self.mu)


def ema_nesterov(
    inner: optax.GradientTransformation,
    *,
    beta: ScalarOrSchedule,
    gamma: Scalar,
    start: int = 0,
    stop: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Takes gradients ahead of the parameters, along a moving average of the steps that were made.

    Equations, with y_t the user's parameters, where g_t is taken, x_t the true ones, t = 0, 1, ... the number of steps
    made, and m_0 = 0:

        y_t = x_t + beta_t m_t                           beta_t = beta for start <= t < stop, else 0
        x_{t+1} = y_t + u_t                              u_t what the optimizer makes of g_t at y_t, its decay included
        m_{t+1} = gamma m_t + (1 - gamma) (x_{t+1} - x_t)

    The update is y_{t+1} - y_t = u_t + beta_{t+1} m_{t+1}. This wrapper must be the outermost one. Read the true
    parameters with `gk.eval_params(state, params)`; every loop does.

    Args:
      inner: any optimizer; its updates include the learning rate.
      beta: distance of the look-ahead in units of m, >= 0, or a schedule of the number of steps made. The paper has 0
        during the warm-up and the last decay of the learning rate.
      gamma: decay of the average of steps, in [0, 1). With 0, and SGD, it is Nesterov's method with momentum beta.
      start: number of steps before the look-ahead begins, >= 0. Default 0.
      stop: number of steps after which it ends, >= 0. Default None: it does not end.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter, two numbers, and the inner state. Elementwise:
      no collective.

    Raises:
      ValueError: an argument outside its range; at `update`, `params` missing.

    Example:
      >>> from gradkit.transforms import eval_params
      >>> tx, y = ema_nesterov(optax.sgd(1.0), beta=2.0, gamma=0.5), jnp.array(0.0)
      >>> u, state = tx.update(jnp.array(-1.0), tx.init(y), y)
      >>> (y + u).item(), eval_params(state, y + u).item()  # x is 1, m is half of the step
      (2.0, 1.0)

    Reference: Yau et al. EMA-Nesterov: Stabilizing Nesterov's Lookahead for Accelerated Deep Learning Optimization.
    2026, arXiv 2605.25395. No official code was found.
    """
    checks.real("beta", beta, "[0, inf)", schedule=True)
    checks.real("gamma", gamma, "[0, 1)")
    start = checks.integer("start", start)
    stop = checks.integer("stop", stop, optional=True)
    below = inside(inner)

    def ahead(count: jax.Array, dtype: Any) -> jax.Array:
        value = jnp.asarray(at_count(beta, count, f"{NAME}: beta")).astype(dtype)
        on = count >= start
        if stop is not None:
            on = on & (count < stop)
        return jnp.where(on, value, jnp.zeros_like(value))

    def init(params: Any) -> EmaNesterovState:
        count = jnp.zeros((), jnp.int32)
        return EmaNesterovState(count, zeros(params), ahead(count, scalar_dtype(params)), below.init(params))

    def update(g: Any, state: EmaNesterovState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        check_fit(NAME, params, state.mu)
        u, own = below.update(g, state.inner, params, **extra)
        count, old = increment(state.count), state.beta
        new = ahead(count, old.dtype)
        # x_{t+1} - x_t is the update u and the difference y_t - x_t.
        m = jax.tree.map(lambda m, u: ema(m, u + cast(old, u.dtype) * cast(m, u.dtype), gamma), state.mu, u)
        moved = jax.tree.map(lambda u, m: u + cast(new, u.dtype) * cast(m, u.dtype), u, m)
        return moved, EmaNesterovState(count, m, new, own)

    return transformation(NAME, init, update, needs_params=True, complex_leaves=True)


register(
    ema_nesterov,
    form="wrapper",
    paper=Paper(
        "EMA-Nesterov: Stabilizing Nesterov's Lookahead for Accelerated Deep Learning Optimization",
        "Yau et al.",
        2026,
        "2605.25395",
    ),
    words=1,
    golden=("modern/ema_nesterov",),
    example={"beta": 0.9, "gamma": 0.5},
    notes="read with gk.eval_params",
)
