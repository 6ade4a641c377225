"""Adam's direction with momentum that follows a schedule, as one-cycle training needs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.accumulators import ema, ema_of_square, over_root
from gradkit.engine.core import (
    at_count,
    bias_corrections,
    cast,
    increment,
    scalar,
    transformation,
    wide_dtype,
    zeros,
)
from gradkit.types import DTypeLike, Scalar, ScalarOrSchedule


class ScaleByScheduledAdamState(NamedTuple):
    """Number of updates made, the two moments, and the total weight w_t of the gradients in the first moment."""

    count: jax.Array
    mu: Any
    nu: Any
    weight: jax.Array


def scale_by_scheduled_adam(
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Rescales updates by Adam's rule, with a decay of the first moment that may change from step to step.

    Equations:

        m_t = b1_t m_{t-1} + (1 - b1_t) g_t        v_t = b2 v_{t-1} + (1 - b2) |g_t|^2
        w_t = b1_t w_{t-1} + (1 - b1_t),  w_0 = 0
        u_t = (m_t / w_t) / (sqrt(v_t / (1 - b2^t) + eps_root) + eps)

    w_t = 1 - b1_1 b1_2 ... b1_t is the total weight of the gradients in m_t. With a number for b1 it is
    `scale_by_adam`.

    Args:
      b1: decay of the first moment, in [0, 1), or a schedule of it, such as `gk.schedules.one_cycle_b1`. Default 0.9.
      b2: decay of the second moment, in [0, 1). Default 0.999.
      eps: added to the root, in the gradient's units, >= 0. Default 1e-8.
      eps_root: added under the root, >= 0. Default 0.
      mu_dtype: dtype in which the first moment is kept between steps. Default float32, or wider.

    Returns:
      A transformation. State: 2 words per parameter, a counter and a number. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = scale_by_scheduled_adam(b1=lambda step: jnp.where(step == 0, 0.9, 0.5))
      >>> g = jnp.array([2.0])
      >>> state = tx.init(g)
      >>> for _ in range(3):  # the mean of equal gradients is that gradient, whatever the decays
      ...     u, state = tx.update(g, state)
      >>> u.round(4).tolist(), round(float(state.weight), 4)  # 1 - 0.9 * 0.5 * 0.5
      ([1.0], 0.775)

    Reference: Momentum in one cycle: Smith. A disciplined approach to neural network hyper-parameters: Part 1. 2018,
    arXiv 1803.09820; Adam: Kingma, Ba 2014. Departure from torch, whose schedulers change b1 and whose Adam divides by
    1 - b1_t^t, with only the b1 of this step: where b1 falls from 0.95 to 0.85 that is too large, and steps too small.
    """
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("b1", b1, "[0, 1)", schedule=True)
    checks.real("b2", b2, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    checks.real("eps_root", eps_root, "[0, inf)")

    def init(params: Any) -> ScaleByScheduledAdamState:
        dtypes = [jnp.finfo(wide_dtype(x.dtype)).dtype for x in jax.tree.leaves(params)]
        widest = max(dtypes, key=lambda d: d.itemsize, default=jnp.dtype(jnp.float32))
        mu, nu = zeros(params, mu_dtype), zeros(params, real=True)
        return ScaleByScheduledAdamState(jnp.zeros((), jnp.int32), mu, nu, jnp.zeros((), widest))

    def update(updates: Any, state: ScaleByScheduledAdamState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        count, b = increment(state.count), at_count(b1, state.count, "b1")
        mu = jax.tree.map(lambda m, g: ema(m, g, b), state.mu, updates)
        nu = jax.tree.map(lambda v, g: ema_of_square(v, g, b2), state.nu, updates)
        weight = ema(state.weight, jnp.ones_like(state.weight), b)
        of_nu = bias_corrections(b2, count)

        def direction(m: jax.Array, v: jax.Array, g: jax.Array) -> jax.Array:
            return over_root(cast(m, g.dtype), v, eps, eps_root, x_by=scalar(weight, g), v_by=of_nu(g))

        return jax.tree.map(direction, mu, nu, updates), ScaleByScheduledAdamState(count, mu, nu, weight)

    return transformation("scale_by_scheduled_adam", init, update, complex_leaves=True)


register(
    scale_by_scheduled_adam,
    form="primitive",
    paper=Paper("A disciplined approach to neural network hyper-parameters: Part 1", "Smith", 2018, "1803.09820"),
    words=2,
)
