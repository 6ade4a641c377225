"""Implicit gradient transport: old gradients, transported to the current parameters without a Hessian."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import increment, scalar, transformation, zeros
from gradkit.transforms import shifted_parameters
from gradkit.types import Scalar

PAPER = Paper(
    "Reducing the variance in online optimization by transporting past gradients", "Arnold et al.", 2019, "1906.03532"
)


class ImplicitGradientTransportState(NamedTuple):
    """Number of updates made, the transported mean of gradients, and the distance of y from x with the inner state."""

    count: jax.Array
    mean: Any
    shifted: Any


def _real(value: Any) -> jax.Array:
    return jnp.asarray(value).astype(jnp.result_type(float))


def _anytime(k: jax.Array, delta: Any) -> jax.Array:
    k = _real(k)
    return k / (k + _real(delta))


def _tail(k: jax.Array, c: Any) -> jax.Array:
    k, c = _real(jnp.maximum(k, 1)), _real(c)
    gamma = c * k / (1 + c * k) * (1 - jnp.sqrt((1 - c) / (k * (k + 1))) / c)
    return jnp.where(k < 2, jnp.zeros_like(gamma), jnp.maximum(gamma, 0))


def implicit_gradient_transport(
    inner: optax.GradientTransformation, *, delta: Scalar = 1.0, tail_fraction: Scalar | None = None
) -> optax.GradientTransformationExtraArgs:
    """Averages gradients as if all had been taken at the current parameters.

    Equations, with k = t - 1 earlier gradients, and g_t taken at the user's parameters y_t:

        gamma_k = k / (k + delta)
        m_t     = gamma_k m_{t-1} + (1 - gamma_k) g_t
        u_t     = inner(m_t)                            at the true parameters x_t
        x_{t+1} = x_t + u_t
        y_{t+1} = x_{t+1} + gamma_{k+1} / (1 - gamma_{k+1}) u_t

    Where all losses have the same Hessian, m_t with delta = 1 is the mean of the gradients of all losses so far AT x_t.
    With `tail_fraction` c the mean is over about the last fraction c of the gradients, and gamma_k is 0 where k < 2 or
    the formula is negative:

        gamma_k = c k / (1 + c k) (1 - sqrt((1 - c) / (k (k + 1))) / c)

    The user's parameters y_t are SHIFTED by about t steps and have a high loss: evaluate and save
    `gk.eval_params(state, params)`, never the parameters themselves.

    Args:
      inner: a complete optimizer, learning rate included; `gk.sgd(rate, momentum=0.9)` is the paper's Heavyball-IGT,
        `gk.adam(rate)` its Adam-IGT.
      delta: > 0; larger values forget faster: recent gradients have about delta times the weight. Default 1: the mean.
      tail_fraction: c in (0, 1]: the mean is over the tail (anytime tail averaging), and delta, which is not used, must
        be 1. Default None: over all gradients, with delta.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter (the mean and the shift), a counter and the
      inner state. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; `params` missing.

    Example:
      >>> from gradkit.transforms import eval_params
      >>> tx = implicit_gradient_transport(optax.sgd(0.1))
      >>> y = jnp.array(1.0)
      >>> state = tx.init(y)
      >>> u, state = tx.update(y, state, y)
      >>> round(float(y + u), 4), round(float(eval_params(state, y + u)), 4)
      (0.8, 0.9)

    Reference: Arnold et al. Reducing the variance in online optimization by transporting past gradients. 2019, arXiv
    1906.03532; with other inner optimizers: Tondji et al. 2021, arXiv 2111.11828. The tail: Le Roux. Anytime Tail
    Averaging. 2019, arXiv 1902.05083, whose weights are clipped at 0 here: while the fraction c is less than one
    gradient, the mean is the last gradient.
    """
    checks.transformation(inner=inner)
    checks.real("delta", delta, "(0, inf)")
    checks.real("tail_fraction", tail_fraction, "(0, 1]", optional=True)
    if tail_fraction is not None and not (isinstance(delta, int | float) and delta == 1):
        raise ValueError(
            f"implicit_gradient_transport: delta must be 1 with tail_fraction, got {delta!r}; leave one of them out"
        )

    def gamma(k: jax.Array) -> jax.Array:
        return _anytime(k, delta) if tail_fraction is None else _tail(k, tail_fraction)

    def ahead(k: jax.Array) -> optax.GradientTransformationExtraArgs:
        """The inner optimizer with the parameters shifted as the NEXT mean requires."""
        following = gamma(k + 1)
        steps = following / (1 - following)
        return shifted_parameters(inner, lambda u: jax.tree.map(lambda x: scalar(steps, x) * x, u))

    def init(params: optax.Params) -> ImplicitGradientTransportState:
        count = jnp.zeros((), jnp.int32)
        shifted: Any = ahead(count).init(params)
        return ImplicitGradientTransportState(count, zeros(params), shifted)

    def update(
        updates: Any, state: ImplicitGradientTransportState, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        kept = gamma(state.count)
        mean = jax.tree.map(lambda m, g: ema(m, g, kept), state.mean, updates)
        result: Any = ahead(state.count).update(mean, state.shifted, params, **extra)
        moved, shifted = result
        return moved, ImplicitGradientTransportState(increment(state.count), mean, shifted)

    return transformation("implicit_gradient_transport", init, update, needs_params=True, complex_leaves=True)


register(
    implicit_gradient_transport,
    form="wrapper",
    paper=PAPER,
    words=2,
    golden=("adaptive/igt_heavy_ball", "adaptive/igt_adam"),
    notes="the parameters the user holds are shifted by t steps: evaluate gk.eval_params(state, params)",
)
