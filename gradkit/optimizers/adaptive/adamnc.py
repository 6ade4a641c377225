"""AdamNC: Adam whose second moment is the mean over all steps, so that no gradient is forgotten."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema, over, root
from gradkit.engine.core import abs_sq, increment, optimizer, transformation, zeros
from gradkit.leaves import Method
from gradkit.transforms import scale_by_learning_rate
from gradkit.types import DTypeLike, Scalar, ScalarOrSchedule

PAPER = Paper("On the Convergence of Adam and Beyond", "Reddi, Kale, Kumar", 2018, "1904.09237")


class ScaleByAdamncState(NamedTuple):
    """Number of updates made, the first moment, and the mean of all squared gradients."""

    count: jax.Array
    mu: Any
    nu: Any


def scale_by_adamnc(
    *, b1: Scalar = 0.9, eps: Scalar = 1e-8, b1_decay: Scalar = 1.0, mu_dtype: DTypeLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """Divides the running mean of gradients by the root of the mean of all their squares so far.

    Equations, with b1_t = b1 b1_decay^(t-1):

        m_t = b1_t m_{t-1} + (1 - b1_t) g_t
        v_t = v_{t-1} + (|g_t|^2 - v_{t-1}) / t            the mean of |g_1|^2, ..., |g_t|^2
        u_t = m_t / (sqrt(v_t) + eps)

    There is no bias correction.

    Args:
      b1: decay of the first moment at the first step, in [0, 1). Default 0.9 (usual practice).
      eps: added to the root, >= 0. Default 1e-8. With 0, coordinates that never had a gradient get the update 0.
      b1_decay: factor of b1 per step, in [0, 1]. Default 1; the paper's theorem has less than 1.
      mu_dtype: dtype in which the first moment is kept between steps. Default float32.

    Returns:
      A transformation. State: 2 words per parameter and a counter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = scale_by_adamnc(b1=0.0, eps=0.0)
      >>> g = jnp.array(1.0)
      >>> _, state = tx.update(7 * g, tx.init(g))
      >>> round(float(tx.update(g, state)[0]), 4)  # over sqrt((49 + 1) / 2)
      0.2

    Reference: Reddi, Kale, Kumar. On the Convergence of Adam and Beyond. 2018, arXiv 1904.09237.
    """
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("b1", b1, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    checks.real("b1_decay", b1_decay, "[0, 1]")

    def init(params: optax.Params) -> ScaleByAdamncState:
        return ScaleByAdamncState(jnp.zeros((), jnp.int32), zeros(params, mu_dtype), zeros(params, real=True))

    def update(updates: Any, state: ScaleByAdamncState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        count = increment(state.count)

        def first(m: jax.Array, g: jax.Array) -> jax.Array:
            dtype = jnp.finfo(g.dtype).dtype
            factor = jnp.asarray(b1_decay).astype(dtype) ** state.count.astype(dtype)
            return ema(m, g, jnp.asarray(b1).astype(dtype) * factor)

        def second(v: jax.Array, g: jax.Array) -> jax.Array:
            return v + (abs_sq(g) - v) / count.astype(v.dtype)

        mu = jax.tree.map(first, state.mu, updates)
        nu = jax.tree.map(second, state.nu, updates)
        u = jax.tree.map(lambda m, v, g: over(m.astype(g.dtype), root(v, eps)), mu, nu, updates)
        return u, ScaleByAdamncState(count, mu, nu)

    return transformation("scale_by_adamnc", init, update, complex_leaves=True)


def adamnc(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    eps: Scalar = 1e-8,
    b1_decay: Scalar = 1.0,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam with b2_t = 1 - 1/t: all squared gradients have the same weight, however old they are.

    Equations, with b1_t = b1 b1_decay^(t-1):

        m_t = b1_t m_{t-1} + (1 - b1_t) g_t
        v_t = v_{t-1} + (|g_t|^2 - v_{t-1}) / t            the mean of |g_1|^2, ..., |g_t|^2
        x_t = x_{t-1} - learning_rate m_t / (sqrt(v_t) + eps)

    There is no bias correction. With b1 = 0 and the learning rate alpha / sqrt(t) this is AdaGrad with the learning
    rate alpha.

    Args:
      learning_rate: step size >= 0, or a schedule; the paper's is alpha / sqrt(t), which is
        `lambda step: alpha / jnp.sqrt(1 + step.astype(float))`.
      b1: decay of the first moment at the first step, in [0, 1). Default 0.9 (usual practice).
      eps: added to the root, >= 0. Default 1e-8.
      b1_decay: factor of b1 per step, in [0, 1]. Default 1; the paper's theorem has less than 1.
      mu_dtype: dtype in which the first moment is kept between steps. Default float32.

    Returns:
      A transformation. State: 2 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = adamnc(0.5, b1=0.0)
      >>> x = jnp.array([2.0, -0.01])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))
      [-0.5  0.5]

    Reference: Reddi, Kale, Kumar. On the Convergence of Adam and Beyond. 2018, arXiv 1904.09237. The paper has no
    eps; eps = 0 is its form.
    """
    return optimizer(
        Method("adamnc", learning_rate),
        scale_by_adamnc(b1=b1, eps=eps, b1_decay=b1_decay, mu_dtype=mu_dtype),
        scale_by_learning_rate(learning_rate),
    )


register(scale_by_adamnc, form="primitive", paper=PAPER, words=2)
register(
    adamnc,
    form="optimizer",
    paper=PAPER,
    words=2,
    race=Race(5e-3),
)
