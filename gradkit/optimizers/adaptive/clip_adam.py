"""Adam on clipped gradients, and the same with a second moment that does not contain the current gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema, over, root
from gradkit.engine.core import (
    abs_sq,
    increment,
    optimizer,
    scalar,
    transformation,
    zeros,
)
from gradkit.engine.core import bias_correction as corrected
from gradkit.leaves import Layout, Method
from gradkit.transforms import scale_by_adam, scale_by_learning_rate
from gradkit.transforms.clip_block import clip_by
from gradkit.types import DTypeLike, Scalar, ScalarOrSchedule

PAPER = Paper(
    "Gradient Clipping Improves AdaGrad when the Noise Is Heavy-Tailed", "Chezhegov et al.", 2024, "2406.04443"
)


class ScaleByDelayedRmsState(NamedTuple):
    """Number of updates made, the first moment, and the second moment that the next update is divided by."""

    count: jax.Array
    mu: Any
    nu: Any


def scale_by_delayed_rms(
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    reweight: Scalar = 1.0,
    initial_accumulator_value: Scalar = 1e-5,
    bias_correction: bool = False,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides the running mean of updates by the root of the running mean of the squares of earlier updates.

    Equations:

        m_t = b1 m_{t-1} + (1 - b1) g_t
        v_t = b2 v_{t-1} + reweight (1 - b2) |g_{t-1}|^2,    g_0 = 0,  v_0 = initial_accumulator_value
        u_t = m_t / (sqrt(v_t) + eps)

    With `bias_correction` the two moments are m_t / (1 - b1^t) and v_t / (1 - b2^t).

    Args:
      b1: decay of the first moment, in [0, 1). Default 0.9.
      b2: decay of the second moment, in [0, 1). Default 0.999. With 0 the denominator has the last square
        alone, and the first update is divided by eps.
      eps: added to the root, >= 0. Default 1e-8. Where the denominator is 0 the update is 0.
      reweight: eta, the weight of every square, > 0. Default 1.
      initial_accumulator_value: v_0 > 0, a square; when it is first used it has decayed once, to b2 v_0. Default
        1e-5 (code).
      bias_correction: whether moments are divided by 1 - b^t. Default False: the second moment starts above 0.
      mu_dtype: dtype in which the first moment is kept. Default float32.

    Returns:
      A transformation. State: 2 words per parameter and a counter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = scale_by_delayed_rms(b1=0.0, b2=0.5, eps=0.0, initial_accumulator_value=8.0)
      >>> g = jnp.array(4.0)
      >>> u, state = tx.update(g, tx.init(g))
      >>> float(u), round(float(tx.update(g, state)[0]), 4)  # 4 / sqrt(4), then 4 / sqrt(2 + 8)
      (2.0, 1.2649)

    Reference: Chezhegov et al. Gradient Clipping Improves AdaGrad when the Noise Is Heavy-Tailed. 2024, arXiv
    2406.04443. The delay needs no copy of the gradient: the second moment is updated after it has been used. The
    official code holds a reference to the gradient without a copy, so that where gradients are zeroed in place nothing
    is accumulated.
    """
    checks.switch(bias_correction=bias_correction)
    checks.floating_dtype(mu_dtype=mu_dtype)
    for name, value in (("b1", b1), ("b2", b2)):
        checks.real(name, value, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    for name, value in (("reweight", reweight), ("initial_accumulator_value", initial_accumulator_value)):
        checks.real(name, value, "(0, inf)")

    def init(params: optax.Params) -> ScaleByDelayedRmsState:
        def start(v: jax.Array) -> jax.Array:
            return v + scalar(b2, v) * scalar(initial_accumulator_value, v)

        nu = jax.tree.map(start, zeros(params, real=True))
        return ScaleByDelayedRmsState(jnp.zeros((), jnp.int32), zeros(params, mu_dtype), nu)

    def update(updates: Any, state: ScaleByDelayedRmsState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        count = increment(state.count)
        mu = jax.tree.map(lambda m, g: ema(m, g, b1), state.mu, updates)

        def direction(m: jax.Array, v: jax.Array, g: jax.Array) -> jax.Array:
            m = m.astype(g.dtype)
            if bias_correction:
                m, v = m / corrected(b1, count, v).astype(m.dtype), v / corrected(b2, count, v)
            return over(m, root(v, eps))

        u = jax.tree.map(direction, mu, state.nu, updates)
        nu = jax.tree.map(lambda v, g: ema(v, scalar(reweight, v) * abs_sq(g), b2), state.nu, updates)
        return u, ScaleByDelayedRmsState(count, mu, nu)

    return transformation("scale_by_delayed_rms", init, update, complex_leaves=True)


def clip_adam(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    max_norm: Scalar = 1.0,
    clipping: str = "local",
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam on clipped gradients.

    Equations:

        c_t = clip(g_t, max_norm)
        m_t = b1 m_{t-1} + (1 - b1) c_t            v_t = b2 v_{t-1} + (1 - b2) |c_t|^2
        x_t = x_{t-1} - learning_rate (m_t / (1 - b1^t)) / (sqrt(v_t / (1 - b2^t)) + eps)

    Args:
      learning_rate: step size >= 0, or a schedule.
      b1: decay of the first moment, in [0, 1). Default 0.9.
      b2: decay of the second moment, in [0, 1). Default 0.999.
      eps: added to the root, >= 0. Default 1e-8.
      max_norm: the clipping level, > 0: a norm, or with "elementwise" an absolute value. Default 1. With infinity
        this is Adam.
      clipping: "global" (all leaves together), "local" (every tensor) or "elementwise". Default "local" (code).
      mu_dtype: dtype in which the first moment is kept. Default float32.
      layout: which axes are stacks, for "local".

    Returns:
      A transformation. State: 2 words per parameter. Collectives: those of the clipping norms.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves with "elementwise".

    Example:
      >>> tx = clip_adam(0.5)
      >>> x = jnp.array([200.0, -1.0])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))  # the first step is the sign of the gradient
      [-0.5  0.5]

    Reference: Chezhegov et al. Gradient Clipping Improves AdaGrad when the Noise Is Heavy-Tailed. 2024, arXiv
    2406.04443. eps is added after bias correction; the code adds it before.
    """
    return optimizer(
        Method("clip_adam", learning_rate),
        clip_by(clipping, max_norm, layout),
        scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype),
        scale_by_learning_rate(learning_rate),
    )


def clip_adamd(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    max_norm: Scalar = 1.0,
    clipping: str = "local",
    reweight: Scalar = 1.0,
    initial_accumulator_value: Scalar = 1e-5,
    bias_correction: bool = False,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam on clipped gradients with a delayed second moment.

    Equations:

        c_t = clip(g_t, max_norm)
        m_t = b1 m_{t-1} + (1 - b1) c_t
        v_t = b2 v_{t-1} + reweight (1 - b2) |c_{t-1}|^2,    c_0 = 0,  v_0 = initial_accumulator_value
        x_t = x_{t-1} - learning_rate m_t / (sqrt(v_t) + eps)

    With `bias_correction` the two moments are m_t / (1 - b1^t) and v_t / (1 - b2^t).

    Args:
      learning_rate: step size >= 0, or a schedule.
      b1: decay of the first moment, in [0, 1). Default 0.9.
      b2: decay of the second moment, in [0, 1). Default 0.999.
      eps: added to the root, >= 0. Default 1e-8.
      max_norm: the clipping level, > 0: a norm, or with "elementwise" an absolute value. Default 1.
      clipping: "global" (all leaves together), "local" (every tensor) or "elementwise". Default "local" (code).
      reweight: eta, the weight of every square, > 0. Default 1.
      initial_accumulator_value: v_0 > 0, a square. Default 1e-5 (code).
      bias_correction: whether moments are divided by 1 - b^t. Default False.
      mu_dtype: dtype in which the first moment is kept. Default float32.
      layout: which axes are stacks, for "local".

    Returns:
      A transformation. State: 2 words per parameter. Collectives: those of the clipping norms.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves with "elementwise".

    Example:
      >>> tx = clip_adamd(0.5, b1=0.5, b2=0.5, initial_accumulator_value=0.125)
      >>> x = jnp.array([200.0])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))  # 0.5 clipped gradient, over sqrt(0.5 * 0.125) = 0.25
      [-1.]

    Reference: Chezhegov et al. Gradient Clipping Improves AdaGrad when the Noise Is Heavy-Tailed. 2024, arXiv
    2406.04443.
    """
    link = scale_by_delayed_rms(
        b1=b1,
        b2=b2,
        eps=eps,
        reweight=reweight,
        initial_accumulator_value=initial_accumulator_value,
        bias_correction=bias_correction,
        mu_dtype=mu_dtype,
    )
    rate = scale_by_learning_rate(learning_rate)
    return optimizer(Method("clip_adamd", learning_rate), clip_by(clipping, max_norm, layout), link, rate)


register(scale_by_delayed_rms, form="primitive", paper=PAPER, words=2, golden=("adaptive/clip_adamd",))
register(
    clip_adam,
    form="optimizer",
    paper=PAPER,
    words=2,
    collectives="norms",
    golden=("adaptive/clip_adam",),
    race=Race(5e-3),
)
register(
    clip_adamd,
    form="optimizer",
    paper=PAPER,
    words=2,
    collectives="norms",
    golden=("adaptive/clip_adamd",),
    race=Race(5e-3),
)
