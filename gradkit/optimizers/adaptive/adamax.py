"""AdaMax: Adam with the decaying maximum of the gradient for its second moment."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema, may_be_zero
from gradkit.engine.core import (
    bias_corrections,
    cast,
    divide,
    increment,
    optimizer,
    scalar,
    transformation,
    zeros,
)
from gradkit.leaves import Method
from gradkit.transforms import scale_by_learning_rate
from gradkit.types import DTypeLike, Scalar, ScalarOrSchedule

PAPER = Paper("Adam: A Method for Stochastic Optimization", "Kingma, Ba", 2014, "1412.6980")


@functools.partial(jax.jit, inline=True)
def _largest(w: jax.Array, g: jax.Array, b2: Any, eps: Any) -> jax.Array:
    return jnp.maximum(scalar(b2, w) * w, jnp.abs(g) + scalar(eps, g))


@functools.partial(jax.jit, static_argnames="guarded", inline=True)
def _direction(m: jax.Array, w: jax.Array, c: jax.Array, *, guarded: bool) -> jax.Array:
    m = cast(m, w.dtype) / c
    return divide(m, w) if guarded else m / w


class ScaleByAdamaxState(NamedTuple):
    """Number of updates made, the first moment, and the decaying maximum."""

    count: jax.Array
    mu: Any
    nu: Any


def scale_by_adamax(
    *, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8, mu_dtype: DTypeLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """Divides the running mean of gradients by the decaying maximum of their absolute values.

    Equations:

        m_t = b1 m_{t-1} + (1 - b1) g_t            w_t = max(b2 w_{t-1}, |g_t| + eps)
        u_t = (m_t / (1 - b1^t)) / w_t

    The maximum needs no bias correction.

    Args:
      b1: decay of the first moment, in [0, 1). Default 0.9 (paper).
      b2: decay of the maximum, in [0, 1). Default 0.999 (paper).
      eps: added to |g| inside the maximum, >= 0. Default 1e-8 (torch, optax; the paper has none). With 0, coordinates
        that never had a gradient get the update 0.
      mu_dtype: dtype in which the first moment is kept between steps. Default float32.

    Returns:
      A transformation. State: 2 words per parameter and a counter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves, which have no maximum.

    Example:
      >>> tx = scale_by_adamax(b1=0.0, b2=0.5, eps=0.0)
      >>> g = jnp.array(1.0)
      >>> _, state = tx.update(8 * g, tx.init(g))
      >>> float(tx.update(g, state)[0])  # over 0.5 * 8
      0.25

    Reference: Kingma, Ba. Adam: A Method for Stochastic Optimization. 2014, arXiv 1412.6980. optax's link of this
    name keeps its moments in the parameters' dtype and promotes its counter implicitly.
    """
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("b1", b1, "[0, 1)")
    checks.real("b2", b2, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")

    def init(params: optax.Params) -> ScaleByAdamaxState:
        return ScaleByAdamaxState(jnp.zeros((), jnp.int32), zeros(params, mu_dtype), zeros(params))

    def update(updates: Any, state: ScaleByAdamaxState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        count = increment(state.count)
        mu = jax.tree.map(lambda m, g: ema(m, g, b1), state.mu, updates)

        nu = jax.tree.map(lambda w, g: _largest(w, g, b2, eps), state.nu, updates)
        c, guarded = bias_corrections(b1, count), may_be_zero(eps)
        u = jax.tree.map(lambda m, w: _direction(m, w, c(w), guarded=guarded), mu, nu)
        return u, ScaleByAdamaxState(count, mu, nu)

    return transformation("scale_by_adamax", init, update)


def adamax(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam with the infinity norm: no entry of a step is much larger than the learning rate.

    Equations:

        m_t = b1 m_{t-1} + (1 - b1) g_t            w_t = max(b2 w_{t-1}, |g_t| + eps)
        x_t = x_{t-1} - learning_rate (m_t / (1 - b1^t)) / w_t

    The maximum needs no bias correction. For b2 > b1 no entry of a step exceeds (1 - b1) / (1 - b1 / b2) learning
    rates, which is 1.009 with the defaults.

    Args:
      learning_rate: step size >= 0, or a schedule. The paper suggests 2e-3.
      b1: decay of the first moment, in [0, 1). Default 0.9 (paper).
      b2: decay of the maximum, in [0, 1). Default 0.999 (paper).
      eps: added to |g| inside the maximum, >= 0. Default 1e-8 (torch, optax; the paper has none).
      mu_dtype: dtype in which the first moment is kept between steps. Default float32.

    Returns:
      A transformation. State: 2 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> tx = adamax(0.5)
      >>> x = jnp.array([2.0, -0.01])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))
      [-0.5  0.5]

    Reference: Kingma, Ba. Adam: A Method for Stochastic Optimization. 2014, arXiv 1412.6980.
    """
    return optimizer(
        Method("adamax", learning_rate),
        scale_by_adamax(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype),
        scale_by_learning_rate(learning_rate),
    )


register(scale_by_adamax, form="primitive", paper=PAPER, words=2, golden=("adaptive/adamax",))
register(
    adamax,
    form="optimizer",
    paper=PAPER,
    words=2,
    golden=("adaptive/adamax",),
    race=Race(5e-3),
)
