"""Ano: the magnitude of the gradient with the sign of the momentum, over a second moment that falls fast."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine import core
from gradkit.engine.accumulators import ema
from gradkit.engine.core import at_count, divide, increment, optimizer, scalar, transformation, zeros
from gradkit.leaves import Method
from gradkit.schedules.phases import real_array
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("ANO : Faster is Better in Noisy Landscape", "Kegreisz", 2025, "2508.18258")


class ScaleByAnoState(NamedTuple):
    """Number of updates made, the momentum and the second moment."""

    count: jax.Array
    mu: Any
    nu: Any


def scale_by_ano(
    *,
    b1: ScalarOrSchedule = 0.92,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-8,
    eps_in_sqrt: bool = False,
    bias_correction: bool = True,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The absolute value of the normalised gradient, with the sign of the momentum.

    Equations:

        m_t = b1 m_{t-1} + (1 - b1) g_t                              only its sign is used: no bias correction
        v_t = b2 v_{t-1} + (1 - b2) sign(g_t^2 - v_{t-1}) g_t^2
        u_t = |g_t| sign(m_t) / (sqrt(v_t / (1 - b2^t)) + eps)       with eps_in_sqrt: sqrt(v_t / (1 - b2^t) + eps)

    Args:
      b1: decay of the momentum, in [0, 1), or a schedule. Default 0.92 (official code).
      b2: decay of the second moment, in [0.5, 1): below, v may become negative. Default 0.99 (official code).
      eps: added to the root, >= 0. Default 1e-8 (official code). With 0, coordinates whose second moment is 0 get the
        update 0.
      eps_in_sqrt: whether eps is added under the root instead (official code). Default False (paper).
      bias_correction: whether v is divided by 1 - b2^t. Default True (paper).
      mu_dtype: dtype in which the momentum is kept. Default float32.

    Returns:
      A transformation. State: 2 words per parameter and a counter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves, which have no sign.

    Example:
      >>> tx = scale_by_ano(eps=0.0)
      >>> g = jnp.array([3.0, -0.1])
      >>> _, state = tx.update(g, tx.init(g))
      >>> print(tx.update(-0.5 * g, state)[0].round(3))  # half of the gradient, in the direction of the momentum
      [ 0.633 -0.633]

    Reference: Kegreisz. ANO: Faster is Better in Noisy Landscape. 2025, arXiv 2508.18258. v decays at every step, as
    in the algorithm and the official code; in Yogi, which the paper's analysis has, it stays where |g| is small.
    """
    checks.switch(eps_in_sqrt=eps_in_sqrt, bias_correction=bias_correction)
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("b1", b1, "[0, 1)", schedule=True)
    checks.real("b2", b2, "[0.5, 1)")
    checks.real("eps", eps, "[0, inf)")

    def init(params: optax.Params) -> ScaleByAnoState:
        return ScaleByAnoState(jnp.zeros((), jnp.int32), zeros(params, mu_dtype), zeros(params))

    def update(updates: Any, state: ScaleByAnoState, params: Any = None, **extra: Any) -> tuple[Any, ScaleByAnoState]:
        del params, extra
        count, b1_t = increment(state.count), at_count(b1, state.count, "scale_by_ano: b1")

        def first(m: jax.Array, g: jax.Array) -> jax.Array:
            return ema(m, g, b1_t)

        def second(v: jax.Array, g: jax.Array) -> jax.Array:
            s = jnp.square(g)
            return ema(v, jnp.sign(s - v) * s, b2)

        mu = jax.tree.map(first, state.mu, updates)
        nu = jax.tree.map(second, state.nu, updates)

        c2 = core.bias_corrections(b2, count)

        def direction(g: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
            v = v / c2(v) if bias_correction else v
            e = scalar(eps, v)
            d = jnp.sqrt(v + e) if eps_in_sqrt else jnp.sqrt(v) + e
            return divide(jnp.abs(g) * jnp.sign(m.astype(g.dtype)), d)

        return jax.tree.map(direction, updates, mu, nu), ScaleByAnoState(count, mu, nu)

    return transformation("scale_by_ano", init, update)


def ano(
    learning_rate: ScalarOrSchedule,
    *,
    b1: ScalarOrSchedule = 0.92,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-8,
    eps_in_sqrt: bool = False,
    bias_correction: bool = True,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Ano: the gradient decides how far a coordinate moves, and the momentum in which direction.

    Equations:

        m_t = b1 m_{t-1} + (1 - b1) g_t                              only its sign is used: no bias correction
        v_t = b2 v_{t-1} + (1 - b2) sign(g_t^2 - v_{t-1}) g_t^2
        u_t = |g_t| sign(m_t) / (sqrt(v_t / (1 - b2^t)) + eps)       with eps_in_sqrt: sqrt(v_t / (1 - b2^t) + eps)
        x_t = x_{t-1} - learning_rate (u_t + weight_decay x_{t-1})

    `gk.grams` has the two roles exchanged.

    Args:
      learning_rate: step size >= 0, or a schedule. The paper has 1e-4.
      b1: decay of the momentum, in [0, 1), or a schedule. Default 0.92 (official code).
      b2: decay of the second moment, in [0.5, 1). Default 0.99 (official code).
      eps: added to the root, >= 0. Default 1e-8 (official code).
      eps_in_sqrt: whether eps is added under the root instead (official code). Default False (paper).
      bias_correction: whether v is divided by 1 - b2^t. Default True (paper).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which the momentum is kept. Default float32.

    Returns:
      A transformation; with `weight_decay` it needs `params`. State: 2 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> tx = ano(0.5)
      >>> x = jnp.array([2.0, -0.01])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))
      [-0.5  0.5]

    Reference: Kegreisz. ANO: Faster is Better in Noisy Landscape. 2025, arXiv 2508.18258.
    """
    link = scale_by_ano(
        b1=b1, b2=b2, eps=eps, eps_in_sqrt=eps_in_sqrt, bias_correction=bias_correction, mu_dtype=mu_dtype
    )
    return optimizer(
        Method("ano", learning_rate, weight_decay, weight_decay_mask),
        link,
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


def _b1_paper(step: Any) -> jax.Array:
    return 1 - 1 / jnp.log(real_array(step) + 3)


def _b1_official(step: Any) -> jax.Array:
    return 1 - 1 / jnp.log(jnp.maximum(real_array(step) + 1, 2))


SCHEDULES = {"paper": _b1_paper, "official": _b1_official}


def anolog(
    learning_rate: ScalarOrSchedule,
    *,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_in_sqrt: bool = False,
    bias_correction: bool = True,
    schedule: str = "paper",
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Ano whose momentum grows longer with the logarithm of the step: one hyperparameter less.

    This is `gk.ano` with a b1 that grows with the step:

        b1_t = 1 - 1 / ln(t + 2)             schedule="paper"
        b1_t = 1 - 1 / ln(max(2, t))         schedule="official"

    Args:
      learning_rate: step size >= 0, or a schedule. The paper has 1e-4.
      b2: decay of the second moment, in [0.5, 1). Default 0.999 (official code).
      eps: added to the root, >= 0. Default 1e-8 (official code).
      eps_in_sqrt: whether eps is added under the root instead (official code). Default False (paper).
      bias_correction: whether v is divided by 1 - b2^t. Default True (paper); the official code has False.
      schedule: the schedule of b1, "paper" or "official" (that of the code). Default "paper".
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which the momentum is kept. Default float32.

    Returns:
      A transformation; with `weight_decay` it needs `params`. State: 2 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> tx = anolog(0.5)
      >>> x = jnp.array([2.0, -0.01])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))
      [-0.5  0.5]

    Reference: Kegreisz. ANO: Faster is Better in Noisy Landscape. 2025, arXiv 2508.18258. The official schedule is
    negative (-0.44) at the first two steps: there the momentum is longer than the gradient, and at the second step the
    first gradient enters it with the opposite sign. Therefore the default is the schedule of the paper.
    """
    checks.choice("schedule", schedule, SCHEDULES)
    link = scale_by_ano(
        b1=SCHEDULES[schedule],
        b2=b2,
        eps=eps,
        eps_in_sqrt=eps_in_sqrt,
        bias_correction=bias_correction,
        mu_dtype=mu_dtype,
    )
    return optimizer(
        Method("anolog", learning_rate, weight_decay, weight_decay_mask),
        link,
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


register(scale_by_ano, form="primitive", paper=PAPER, words=2, golden=("adaptive/ano",))
register(
    ano,
    form="optimizer",
    paper=PAPER,
    words=2,
    golden=("adaptive/ano",),
    race=Race(5e-3),
)
register(
    anolog,
    form="optimizer",
    paper=PAPER,
    words=2,
    golden=("adaptive/anolog",),
    race=Race(5e-3),
)
