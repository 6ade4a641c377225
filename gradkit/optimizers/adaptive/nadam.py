"""NAdam: Adam whose first moment looks one step ahead, as Nesterov's momentum does."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema, ema_of_square, over_root
from gradkit.engine.core import (
    bias_corrections,
    cast,
    increment,
    optimizer,
    scalar,
    transformation,
    zeros,
)
from gradkit.leaves import Method
from gradkit.transforms import scale_by_adam, scale_by_learning_rate
from gradkit.types import DTypeLike, Scalar, ScalarOrSchedule

PAPER = Paper("An overview of gradient descent optimization algorithms", "Ruder", 2016, "1609.04747")


@functools.partial(jax.jit, inline=True)
def _ahead(m: jax.Array, g: jax.Array, m_by: jax.Array, g_by: jax.Array) -> jax.Array:
    return cast(m, g.dtype) / scalar(m_by, g) + g / scalar(g_by, g)


class ScaleByNadamState(NamedTuple):
    """Number of updates made, the product of the momenta used so far, and the two moments."""

    count: jax.Array
    product: jax.Array
    mu: Any
    nu: Any


def scale_by_nadam(
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    momentum_decay: Scalar = 4e-3,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of NAdam with a momentum that warms up from b1 / 2 to b1.

    Equations, with psi = momentum_decay:

        m_t = b1 m_{t-1} + (1 - b1) g_t            v_t = b2 v_{t-1} + (1 - b2) |g_t|^2
        mu_t = b1 (1 - 0.96^(t psi) / 2),          P_t = mu_1 ... mu_t
        n_t = mu_{t+1} m_t / (1 - P_{t+1}) + (1 - mu_t) g_t / (1 - P_t)
        u_t = n_t / (sqrt(v_t / (1 - b2^t)) + eps)

    Args:
      b1: decay of the first moment, and the limit of mu_t after many steps, in [0, 1). Default 0.9 (Dozat: 0.99).
      b2: decay of the second moment, in [0, 1). Default 0.999 (Dozat).
      eps: added to the root, >= 0. Default 1e-8 (Dozat). With 0, coordinates without a gradient get the update 0.
      momentum_decay: psi >= 0, how fast the momentum warms up. Default 4e-3 (Dozat). With 0 it stays at b1 / 2: the
        factor of one half never fades.
      mu_dtype: dtype in which the first moment is kept between steps. Default float32.

    Returns:
      A transformation. State: 2 words per parameter, a counter and a product. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = scale_by_nadam(b1=0.5, eps=0.0, momentum_decay=0.0)
      >>> g = jnp.array(8.0)
      >>> round(float(tx.update(g, tx.init(g))[0]), 4)  # 0.25 * 0.5 / (1 - 0.25^2) + 0.75 / (1 - 0.25)
      1.1333

    Reference: Dozat. Incorporating Nesterov Momentum into Adam. 2016; Ruder. An overview of gradient descent
    optimization algorithms. 2016, arXiv 1609.04747. The form of torch's NAdam.
    """
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("b1", b1, "[0, 1)")
    checks.real("b2", b2, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    checks.real("momentum_decay", momentum_decay, "[0, inf)")

    def momentum(t: jax.Array, dtype: Any) -> jax.Array:
        b, psi = (jnp.asarray(x).astype(dtype) for x in (b1, momentum_decay))
        return b * (1 - 0.5 * 0.96 ** (t.astype(dtype) * psi))

    def init(params: optax.Params) -> ScaleByNadamState:
        one = jnp.ones((), jnp.result_type(float))
        return ScaleByNadamState(jnp.zeros((), jnp.int32), one, zeros(params, mu_dtype), zeros(params, real=True))

    def update(updates: Any, state: ScaleByNadamState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        count, dtype = increment(state.count), state.product.dtype
        now, following = momentum(count, dtype), momentum(count + 1, dtype)
        product = state.product * now
        m_by, g_by = (1 - product * following) / following, (1 - product) / (1 - now)
        mu = jax.tree.map(lambda m, g: ema(m, g, b1), state.mu, updates)
        nu = jax.tree.map(lambda v, g: ema_of_square(v, g, b2), state.nu, updates)
        c2 = bias_corrections(b2, count)

        def direction(m: jax.Array, v: jax.Array, g: jax.Array) -> jax.Array:
            return over_root(_ahead(m, g, m_by, g_by), v, eps, v_by=c2(v))

        return jax.tree.map(direction, mu, nu, updates), ScaleByNadamState(count, product, mu, nu)

    return transformation("scale_by_nadam", init, update, complex_leaves=True)


def nadam(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    momentum_decay: Scalar | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam whose first moment looks one step ahead (Nesterov).

    Equations:

        m_t = b1 m_{t-1} + (1 - b1) g_t            v_t = b2 v_{t-1} + (1 - b2) |g_t|^2

        momentum_decay=None   n_t = b1 m_t / (1 - b1^(t+1)) + (1 - b1) g_t / (1 - b1^t)
        momentum_decay=psi    mu_t = b1 (1 - 0.96^(t psi) / 2),    P_t = mu_1 ... mu_t
                              n_t = mu_{t+1} m_t / (1 - P_{t+1}) + (1 - mu_t) g_t / (1 - P_t)

        x_t = x_{t-1} - learning_rate n_t / (sqrt(v_t / (1 - b2^t)) + eps)

    Args:
      learning_rate: step size >= 0, or a schedule. torch has 2e-3.
      b1: decay of the first moment, in [0, 1). Default 0.9.
      b2: decay of the second moment, in [0, 1). Default 0.999 (Dozat).
      eps: added to the root, >= 0. Default 1e-8 (Dozat).
      momentum_decay: psi >= 0 for a momentum that warms up (torch: 4e-3). Default None: a constant one (optax).
      mu_dtype: dtype in which the first moment is kept between steps. Default float32.

    Returns:
      A transformation. State: 2 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = nadam(0.5, b1=0.5)
      >>> x = jnp.array([2.0, -0.01])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))  # 0.5 * 0.5 / (1 - 0.5^2) + 0.5 / (1 - 0.5) times the rate
      [-0.6667  0.6667]

    Reference: Dozat. Incorporating Nesterov Momentum into Adam. 2016; Ruder. An overview of gradient descent
    optimization algorithms. 2016, arXiv 1609.04747. Ruder's 1 - b1^t under both terms is
    `gk.scale_by_adam(nesterov=True, nesterov_correction="same")`.
    """
    shared = {"b1": b1, "b2": b2, "eps": eps, "mu_dtype": mu_dtype}
    if momentum_decay is None:
        link = scale_by_adam(nesterov=True, **shared)
    else:
        link = scale_by_nadam(momentum_decay=momentum_decay, **shared)
    return optimizer(Method("nadam", learning_rate), link, scale_by_learning_rate(learning_rate))


register(scale_by_nadam, form="primitive", paper=PAPER, words=2, golden=("adaptive/nadam",))
register(
    nadam,
    form="optimizer",
    paper=PAPER,
    words=2,
    golden=("adaptive/nadam",),
    race=Race(5e-3),
)
