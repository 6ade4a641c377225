"""ADOPT: Adam whose second moment leaves out the gradient that it normalises, so that it converges for every b2."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema, ema_of_square
from gradkit.engine.core import cast, increment, optimizer, scalar, transformation, zeros
from gradkit.leaves import Method
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate", "Taniguchi et al.", 2024, "2411.02853"
)


@jax.jit
def _normalised(g: jax.Array, v: jax.Array, eps: Any, limit: Any) -> jax.Array:
    floor = scalar(eps, v)
    denominator = jnp.maximum(jnp.sqrt(v), floor)
    # With eps = 0 a coordinate that never had a gradient has the denominator 0.
    n = jnp.where(denominator > 0, g / jnp.where(denominator > 0, denominator, jnp.ones_like(v)), jnp.sign(g))
    return n if limit is None else jnp.clip(n, -scalar(limit, n), scalar(limit, n))


@functools.partial(jax.jit, inline=True)
def _held(first: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(first, jnp.zeros_like(x), x)


class ScaleByAdoptState(NamedTuple):
    """Number of updates made, the mean of normalised gradients, and the second moment of earlier gradients."""

    count: jax.Array
    mu: Any
    nu: Any


def scale_by_adopt(
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.9999,
    eps: Scalar = 1e-6,
    clip_exponent: Scalar = 0.25,
    nesterov: bool = False,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Averages gradients after they were divided by the root of the second moment of the earlier gradients.

    Equations, without a bias correction; the first update is 0:

        v_1 = g_1^2, u_1 = 0;   for t >= 2:
        n_t = clip(g_t / max(sqrt(v_{t-1}), eps), -c, c),  c = (t - 1)^clip_exponent
        u_t = m_t = b1 m_{t-1} + (1 - b1) n_t,             with nesterov  u_t = b1 m_t + (1 - b1) n_t
        v_t = b2 v_{t-1} + (1 - b2) g_t^2

    Args:
      b1: decay of the mean, in [0, 1). Default 0.9 (paper).
      b2: decay of the second moment, in [0, 1). Default 0.9999 (paper).
      eps: lower bound of the root, not added to it, >= 0. Default 1e-6 (paper).
      clip_exponent: exponent of the bound c, >= 0; None for no bound. Default 0.25 (official code, `clip_lambda`).
      nesterov: whether the mean looks one step ahead. Default False.
      mu_dtype: dtype in which the mean is kept between steps. Default float32.

    Returns:
      A transformation. State: 2 words per parameter and a counter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> tx = scale_by_adopt(b1=0.0, b2=0.5, clip_exponent=None)
      >>> g = jnp.array([2.0])
      >>> u, state = tx.update(g, tx.init(g))
      >>> u.tolist(), tx.update(4 * g, state)[0].tolist()  # the second moment is 4, without the gradient 8
      ([0.0], [4.0])

    Reference: Taniguchi et al. ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate. 2024, arXiv
    2411.02853. `nesterov` is that of optax.contrib.adopt. With eps = 0 a coordinate whose gradients were all 0 so far
    gets the sign of its gradient.
    """
    checks.switch(nesterov=nesterov)
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("b1", b1, "[0, 1)")
    checks.real("b2", b2, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    checks.real("clip_exponent", clip_exponent, "[0, inf)", optional=True)

    def init(params: optax.Params) -> ScaleByAdoptState:
        return ScaleByAdoptState(jnp.zeros((), jnp.int32), zeros(params, mu_dtype), zeros(params))

    def update(updates: Any, state: ScaleByAdoptState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        first = state.count == 0

        def one(m: jax.Array, v: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            limit = None if clip_exponent is None else state.count.astype(g.dtype) ** scalar(clip_exponent, g)
            n = _held(first, _normalised(g, v, eps, limit))
            mu = ema(m, n, b1)
            nu = jnp.where(first, jnp.square(g), ema_of_square(v, g, b2))
            return cast(ema(mu, n, b1) if nesterov else mu, g.dtype), mu, nu

        g, structure = jax.tree.flatten(updates)
        rows = [*map(one, jax.tree.leaves(state.mu), jax.tree.leaves(state.nu), g)]
        direction, mu, nu = (structure.unflatten([row[i] for row in rows]) for i in range(3))
        return direction, ScaleByAdoptState(increment(state.count), mu, nu)

    return transformation("scale_by_adopt", init, update)


class HoldFirstStepState(NamedTuple):
    """Number of updates made."""

    count: jax.Array


def _hold_first_step() -> optax.GradientTransformationExtraArgs:
    """Sets the first update to 0, including the weight decay that is part of it."""

    def init(params: optax.Params) -> HoldFirstStepState:
        del params
        return HoldFirstStepState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: HoldFirstStepState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        first = state.count == 0
        return jax.tree.map(lambda u: _held(first, u), updates), HoldFirstStepState(increment(state.count))

    return transformation("adopt", init, update)


def adopt(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.9999,
    eps: Scalar = 1e-6,
    clip_exponent: Scalar = 0.25,
    nesterov: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam normalised by the earlier gradients, with decoupled weight decay: it converges with any b2.

    Equations, where the first step only sets the second moment, and the parameters neither move nor decay:

        v_1 = g_1^2, m_1 = 0, x_1 = x_0;   for t >= 2:
        n_t = clip(g_t / max(sqrt(v_{t-1}), eps), -c, c),  c = (t - 1)^clip_exponent
        m_t = b1 m_{t-1} + (1 - b1) n_t
        x_t = x_{t-1} - learning_rate (m_t + weight_decay x_{t-1})
        v_t = b2 v_{t-1} + (1 - b2) g_t^2

    Args:
      learning_rate: step size >= 0, or a schedule. The official code has 1e-3.
      b1: decay of the mean, in [0, 1). Default 0.9 (paper).
      b2: decay of the second moment, in [0, 1). Default 0.9999 (paper).
      eps: lower bound of the root, not added to it, >= 0. Default 1e-6 (paper).
      clip_exponent: exponent of the bound c, >= 0; None for no bound. Default 0.25 (official code, `clip_lambda`).
      nesterov: whether the mean looks one step ahead. Default False.
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which the mean is kept. Default float32.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> tx = adopt(0.5, b1=0.0, weight_decay=0.1)
      >>> x = jnp.array([1.0])
      >>> u, state = tx.update(x, tx.init(x), x)
      >>> print(jnp.abs(u), tx.update(x, state, x)[0].round(4))
      [0.] [-0.55]

    Reference: Taniguchi et al. ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate. 2024, arXiv
    2411.02853. optax.contrib.adopt behind optax's decay decays in the first step too; the official code, and this
    function, do not.
    """
    return optimizer(
        Method("adopt", learning_rate, weight_decay, weight_decay_mask),
        scale_by_adopt(b1=b1, b2=b2, eps=eps, clip_exponent=clip_exponent, nesterov=nesterov, mu_dtype=mu_dtype),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        _hold_first_step(),
        scale_by_learning_rate(learning_rate),
    )


register(scale_by_adopt, form="primitive", paper=PAPER, words=2, golden=("modern/adopt",))
register(adopt, form="optimizer", paper=PAPER, words=2, golden=("modern/adopt",), race=Race(5e-3))
