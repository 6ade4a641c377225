"""LaProp: the mean of normalised gradients, where Adam normalises the mean of gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema, ema_of_square, over_root
from gradkit.engine.core import bias_corrections, cast, increment, optimizer, transformation, zeros
from gradkit.leaves import Method
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("LaProp: Separating Momentum and Adaptivity in Adam", "Ziyin, Wang, Ueda", 2020, "2002.04839")


class ScaleByLapropState(NamedTuple):
    """Number of updates made, the mean of normalised gradients, and the second moment."""

    count: jax.Array
    mu: Any
    nu: Any


def scale_by_laprop(
    *, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-15, mu_dtype: DTypeLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """Averages gradients after they were divided by the root of their second moment.

    Equations:

        v_t = b2 v_{t-1} + (1 - b2) |g_t|^2
        m_t = b1 m_{t-1} + (1 - b1) g_t / (sqrt(v_t / (1 - b2^t)) + eps)
        u_t = m_t / (1 - b1^t)

    No entry of u_t is ever above 1 / sqrt(1 - b2), whatever b1 is.

    Args:
      b1: decay of the mean, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      eps: added to the root, >= 0. Default 1e-15 (official code). With 0, coordinates whose second moment is 0 get the
        update 0.
      mu_dtype: dtype in which the mean is kept between steps. Default float32.

    Returns:
      A transformation. State: 2 words per parameter and a counter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = scale_by_laprop(b1=0.5, b2=0.0)
      >>> g = jnp.array([4.0, -1.0])
      >>> u, state = tx.update(g, tx.init(g))
      >>> tx.update(100 * g, state)[0].round(4).tolist()  # with b2 = 0 a mean of signs
      [1.0, -1.0]

    Reference: Ziyin, Wang, Ueda. LaProp: Separating Momentum and Adaptivity in Adam. 2020, arXiv 2002.04839. The
    official code averages the learning rate inside of m_t and divides by the average of the rates; here the rate is a
    later link, which is the same for a constant rate.
    """
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("b1", b1, "[0, 1)")
    checks.real("b2", b2, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")

    def init(params: optax.Params) -> ScaleByLapropState:
        return ScaleByLapropState(jnp.zeros((), jnp.int32), zeros(params, mu_dtype), zeros(params, real=True))

    def update(updates: Any, state: ScaleByLapropState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        count = increment(state.count)
        of_mu, of_nu = bias_corrections(b1, count), bias_corrections(b2, count)
        nu = jax.tree.map(lambda v, g: ema_of_square(v, g, b2), state.nu, updates)
        mu = jax.tree.map(lambda m, v, g: ema(m, over_root(g, v, eps, v_by=of_nu(v)), b1), state.mu, nu, updates)
        new = jax.tree.map(lambda m, g: cast(m, g.dtype) / cast(of_mu(g), g.dtype), mu, updates)
        return new, ScaleByLapropState(count, mu, nu)

    return transformation("scale_by_laprop", init, update, complex_leaves=True)


def laprop(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-15,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Momentum of normalised gradients: steps stay bounded whatever b1 and b2 are.

    Equations:

        v_t = b2 v_{t-1} + (1 - b2) |g_t|^2
        m_t = b1 m_{t-1} + (1 - b1) g_t / (sqrt(v_t / (1 - b2^t)) + eps)
        x_t = x_{t-1} - learning_rate (m_t / (1 - b1^t) + weight_decay x_{t-1})

    Args:
      learning_rate: step size >= 0, or a schedule. The official code has 4e-4.
      b1: decay of the mean, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      eps: added to the root, >= 0. Default 1e-15 (official code).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which the mean is kept. Default float32.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = laprop(0.5)
      >>> x = jnp.array([1.0, -5.0])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))
      [-0.5  0.5]

    Reference: Ziyin, Wang, Ueda. LaProp: Separating Momentum and Adaptivity in Adam. 2020, arXiv 2002.04839. The decay
    is multiplied by the learning rate; the official code subtracts weight_decay x without it, and averages the rate
    inside of m_t, which differs under a schedule.
    """
    return optimizer(
        Method("laprop", learning_rate, weight_decay, weight_decay_mask),
        scale_by_laprop(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


register(scale_by_laprop, form="primitive", paper=PAPER, words=2, golden=("modern/laprop",))
register(laprop, form="optimizer", paper=PAPER, words=2, golden=("modern/laprop",), race=Race(5e-3))
