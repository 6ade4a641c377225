"""AMSGrad: Adam whose second moment never falls, so that no rare large gradient is forgotten."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema, ema_of_square, over_root
from gradkit.engine.core import bias_correction as corrected
from gradkit.engine.core import cast, increment, once_per_dtype, optimizer, transformation, zeros
from gradkit.leaves import Method
from gradkit.transforms import scale_by_learning_rate
from gradkit.types import DTypeLike, Scalar, ScalarOrSchedule

PAPER = Paper("On the Convergence of Adam and Beyond", "Reddi, Kale, Kumar", 2018, "1904.09237")
BIAS_CORRECTIONS = ("none", "after_max", "before_max")


@functools.partial(jax.jit, inline=True)
def _largest(w: jax.Array, v: jax.Array, v_by: Any) -> jax.Array:
    return jnp.maximum(w, v if v_by is None else v / v_by)


class ScaleByAmsgradState(NamedTuple):
    """Number of updates made, the two moments, and the largest second moment so far."""

    count: jax.Array
    mu: Any
    nu: Any
    nu_max: Any


def scale_by_amsgrad(
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    bias_correction: str = "before_max",
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides the running mean of gradients by the root of the largest second moment so far.

    Equations:

        m_t = b1 m_{t-1} + (1 - b1) g_t            v_t = b2 v_{t-1} + (1 - b2) g_t^2

        bias_correction   the largest second moment                 direction u_t
        "none"            w_t = max(w_{t-1}, v_t)                   m_t / (sqrt(w_t) + eps)
        "after_max"       w_t = max(w_{t-1}, v_t)                   m_t / (1 - b1^t) / (sqrt(w_t / (1 - b2^t)) + eps)
        "before_max"      w_t = max(w_{t-1}, v_t / (1 - b2^t))      m_t / (1 - b1^t) / (sqrt(w_t) + eps)

    eps_root is added under the root. The three forms differ visibly: early second moments are small before they are
    corrected and noisy afterwards, so a maximum of corrected ones remembers the noise of the first steps.

    Args:
      b1: decay of the first moment, in [0, 1). Default 0.9 (the paper's experiments).
      b2: decay of the second moment, in [0, 1). Default 0.999.
      eps: added to the root, >= 0. Default 1e-8. With 0, coordinates that never had a gradient get the update 0.
      eps_root: added under the root, >= 0. Default 0.
      bias_correction: "none" (paper), "after_max" (torch, TensorFlow) or "before_max" (optax). Default "before_max".
      mu_dtype: dtype in which the first moment is kept between steps. Default float32.

    Returns:
      A transformation. State: 3 words per parameter and a counter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves, which have no maximum.

    Example:
      >>> tx = scale_by_amsgrad(b1=0.0, b2=0.5, eps=0.0, bias_correction="none")
      >>> g = jnp.array(1.0)
      >>> _, state = tx.update(8 * g, tx.init(g))
      >>> round(float(tx.update(g, state)[0]), 4)  # still over sqrt(32), the root of the largest moment
      0.1768

    Reference: Reddi, Kale, Kumar. On the Convergence of Adam and Beyond. 2018, arXiv 1904.09237. The paper's decays
    b1 lambda^(t-1) and b1 / t are schedules for `gk.inject_hyperparams`. optax's flags give "before_max" and "none",
    and no setting of them gives what models trained with torch had.
    """
    checks.floating_dtype(mu_dtype=mu_dtype)
    for name, value in (("b1", b1), ("b2", b2)):
        checks.real(name, value, "[0, 1)")
    for name, value in (("eps", eps), ("eps_root", eps_root)):
        checks.real(name, value, "[0, inf)")
    checks.choice("bias_correction", bias_correction, BIAS_CORRECTIONS)

    def init(params: optax.Params) -> ScaleByAmsgradState:
        return ScaleByAmsgradState(jnp.zeros((), jnp.int32), zeros(params, mu_dtype), zeros(params), zeros(params))

    def update(updates: Any, state: ScaleByAmsgradState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        count = increment(state.count)
        mu = jax.tree.map(lambda m, g: ema(m, g, b1), state.mu, updates)
        nu = jax.tree.map(lambda v, g: ema_of_square(v, g, b2), state.nu, updates)
        c1, c2 = (once_per_dtype(lambda x, b=b: corrected(b, count, x)) for b in (b1, b2))
        before, after = bias_correction == "before_max", bias_correction == "after_max"
        nu_max = jax.tree.map(lambda w, v: _largest(w, v, c2(v) if before else None), state.nu_max, nu)

        def direction(m: jax.Array, w: jax.Array) -> jax.Array:
            first = None if bias_correction == "none" else c1(w)
            return over_root(cast(m, w.dtype), w, eps, eps_root, x_by=first, v_by=c2(w) if after else None)

        return jax.tree.map(direction, mu, nu_max), ScaleByAmsgradState(count, mu, nu, nu_max)

    return transformation("scale_by_amsgrad", init, update)


def amsgrad(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    bias_correction: str = "before_max",
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam with the largest second moment so far.

    Equations:

        m_t = b1 m_{t-1} + (1 - b1) g_t            v_t = b2 v_{t-1} + (1 - b2) g_t^2

        bias_correction   the largest second moment                 direction u_t
        "none"            w_t = max(w_{t-1}, v_t)                   m_t / (sqrt(w_t) + eps)
        "after_max"       w_t = max(w_{t-1}, v_t)                   m_t / (1 - b1^t) / (sqrt(w_t / (1 - b2^t)) + eps)
        "before_max"      w_t = max(w_{t-1}, v_t / (1 - b2^t))      m_t / (1 - b1^t) / (sqrt(w_t) + eps)

        x_t = x_{t-1} - learning_rate u_t

    eps_root is added under the root. The three forms differ visibly: early second moments are small before they are
    corrected and noisy afterwards, so a maximum of corrected ones remembers the noise of the first steps.

    Args:
      learning_rate: step size >= 0, or a schedule; the paper's theorem has alpha / sqrt(t).
      b1: decay of the first moment, in [0, 1). Default 0.9 (the paper's experiments).
      b2: decay of the second moment, in [0, 1). Default 0.999; the paper uses 0.99 and 0.999.
      eps: added to the root, >= 0. Default 1e-8.
      eps_root: added under the root, >= 0. Default 0.
      bias_correction: "none" (paper), "after_max" (torch, TensorFlow) or "before_max" (optax). Default "before_max",
        so that the name means here what it means in optax.
      mu_dtype: dtype in which the first moment is kept between steps. Default float32.

    Returns:
      A transformation. State: 3 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> tx = amsgrad(0.5)
      >>> x = jnp.array([2.0, -0.01])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))  # the first step is Adam's
      [-0.5  0.5]

    Reference: Reddi, Kale, Kumar. On the Convergence of Adam and Beyond. 2018, arXiv 1904.09237.
    """
    link = scale_by_amsgrad(
        b1=b1, b2=b2, eps=eps, eps_root=eps_root, bias_correction=bias_correction, mu_dtype=mu_dtype
    )
    return optimizer(Method("amsgrad", learning_rate), link, scale_by_learning_rate(learning_rate))


GOLDEN = ("adaptive/amsgrad", "adaptive/amsgrad_before_max", "adaptive/amsgrad_none")
register(scale_by_amsgrad, form="primitive", paper=PAPER, words=3, golden=GOLDEN)
register(
    amsgrad,
    form="optimizer",
    paper=PAPER,
    words=3,
    golden=GOLDEN,
    race=Race(5e-3),
)
