"""Adan: Adam with Nesterov's momentum, written with differences of gradients instead of a second gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema, ema_of_square, over_root
from gradkit.engine.core import (
    at_count,
    bias_corrections,
    cast,
    counter,
    increment,
    optimizer,
    scalar,
    transformation,
    zeros,
)
from gradkit.leaves import Method, resolve_mask
from gradkit.leaves.scopes import decay_here
from gradkit.transforms import add_decayed_weights, clip_by_global_norm, scale_by_learning_rate
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models", "Xie et al.", 2022, "2208.06677"
)


class ScaleByAdanState(NamedTuple):
    """Number of updates made; the means of gradients, of their differences and of squares; the last gradient."""

    count: jax.Array
    mu: Any
    delta: Any
    nu: Any
    previous: Any

    exact_fields = ("previous",)  # only its difference from the next gradient is used


def scale_by_adan(
    *, b1: Scalar = 0.98, b2: Scalar = 0.92, b3: Scalar = 0.99, eps: Scalar = 1e-8, mu_dtype: DTypeLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """Rescales the Nesterov momentum of gradients and of their differences by a second moment.

    Equations, with delta_t = g_t - g_{t-1} and delta_1 = 0:

        m_t = b1 m_{t-1} + (1 - b1) g_t,   d_t = b2 d_{t-1} + (1 - b2) delta_t
        n_t = b3 n_{t-1} + (1 - b3) |g_t + b2 delta_t|^2
        u_t = (m_t / (1 - b1^t) + b2 d_t / (1 - b2^t)) / (sqrt(n_t / (1 - b3^t)) + eps)

    Args:
      b1: decay of the gradients, in [0, 1). Default 0.98 (official code; 1 minus the paper's beta_1).
      b2: decay of the differences and their weight, in [0, 1). Default 0.92 (official code; 1 minus the paper's).
      b3: decay of the second moment, in [0, 1). Default 0.99 (official code; 1 minus the paper's).
      eps: added to the root, >= 0. Default 1e-8 (official code).
      mu_dtype: dtype in which the mean of gradients is kept. Default float32.

    Returns:
      A transformation. State: 4 words per parameter and a counter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = scale_by_adan()
      >>> g = jnp.array([3.0, -0.1])
      >>> tx.update(g, tx.init(g))[0].round(4).tolist()
      [1.0, -1.0]

    Reference: Xie et al. Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models. 2022, arXiv
    2208.06677; the conventions are those of the official code. optax.adan has b2 = 0.92 too, but weights the
    differences by 1 - b2, which is right for the b2 = 0.08 of the paper's convention.
    """
    checks.floating_dtype(mu_dtype=mu_dtype)
    for name, value in (("b1", b1), ("b2", b2), ("b3", b3)):
        checks.real(name, value, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")

    def init(params: optax.Params) -> ScaleByAdanState:
        count = jnp.zeros((), jnp.int32)
        return ScaleByAdanState(count, zeros(params, mu_dtype), zeros(params), zeros(params, real=True), zeros(params))

    def update(updates: Any, state: ScaleByAdanState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        first, count = state.count == 0, increment(state.count)
        change = jax.tree.map(lambda g, old: jnp.where(first, jnp.zeros_like(g), g - old), updates, state.previous)
        mu = jax.tree.map(lambda m, g: ema(m, g, b1), state.mu, updates)
        delta = jax.tree.map(lambda d, c: ema(d, c, b2), state.delta, change)
        nu = jax.tree.map(lambda n, g, c: ema_of_square(n, g + scalar(b2, c) * c, b3), state.nu, updates, change)
        of_mu, of_delta, of_nu = (bias_corrections(b, count) for b in (b1, b2, b3))

        def direction(m: jax.Array, d: jax.Array, n: jax.Array, g: jax.Array) -> jax.Array:
            ahead = cast(m, g.dtype) / cast(of_mu(g), g.dtype) + scalar(b2, g) * d / cast(of_delta(g), g.dtype)
            return over_root(ahead, n, eps, v_by=of_nu(n))

        new = jax.tree.map(direction, mu, delta, nu, updates)
        # The state needs a copy of its own, as the caller may donate the gradients.
        return new, ScaleByAdanState(count, mu, delta, nu, jax.tree.map(jnp.copy, updates))

    return transformation("scale_by_adan", init, update, complex_leaves=True)


class ProximalDecayState(NamedTuple):
    """Number of updates made; None where neither the learning rate nor the decay is a schedule."""

    count: Any


def _proximal(learning_rate: Any, weight_decay: Any, mask: Any) -> optax.GradientTransformationExtraArgs:
    """Divides a direction with its decay by 1 + learning_rate weight_decay: the proximal step for the decay."""

    def init(params: optax.Params) -> ProximalDecayState:
        del params
        return ProximalDecayState(counter(callable(learning_rate) or callable(weight_decay)))

    def update(updates: Any, state: ProximalDecayState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        rate = at_count(learning_rate, state.count, "adan: learning_rate")
        decay = decay_here(at_count(weight_decay, state.count, "adan: weight_decay"))

        def one(u: jax.Array, on: bool) -> jax.Array:
            return u / (1 + scalar(rate, u) * scalar(decay, u)) if on else u

        new = jax.tree.map(one, updates, resolve_mask(mask, updates))
        return new, ProximalDecayState(increment(state.count))

    return transformation("adan", init, update, complex_leaves=True)


def adan(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.98,
    b2: Scalar = 0.92,
    b3: Scalar = 0.99,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    proximal: bool = True,
    max_norm: Scalar | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adaptive Nesterov momentum, with proximal weight decay.

    Equations, with delta_t = g_t - g_{t-1} and delta_1 = 0:

        m_t = b1 m_{t-1} + (1 - b1) g_t,   d_t = b2 d_{t-1} + (1 - b2) delta_t
        n_t = b3 n_{t-1} + (1 - b3) |g_t + b2 delta_t|^2
        u_t = (m_t / (1 - b1^t) + b2 d_t / (1 - b2^t)) / (sqrt(n_t / (1 - b3^t)) + eps)
        x_t = (x_{t-1} - learning_rate u_t) / (1 + learning_rate weight_decay)                with proximal
        x_t = x_{t-1} - learning_rate (u_t + weight_decay x_{t-1})                            otherwise

    Args:
      learning_rate: step size >= 0, or a schedule. The official code has 1e-3.
      b1: decay of the gradients, in [0, 1). Default 0.98 (official code; 1 minus the paper's beta_1).
      b2: decay of the differences and their weight, in [0, 1). Default 0.92 (official code; 1 minus the paper's).
      b3: decay of the second moment, in [0, 1). Default 0.99 (official code; 1 minus the paper's).
      eps: added to the root, >= 0. Default 1e-8 (official code).
      weight_decay: decay >= 0, or a schedule. Default 0 (official code; the paper has 0.02).
      weight_decay_mask: which leaves decay. Default all.
      proximal: whether the decay divides after the step (paper). Default True; False is decoupled decay, which the
        official code calls `no_prox`.
      max_norm: global norm that gradients are clipped to first, > 0. Default None.
      mu_dtype: dtype in which the mean of gradients is kept. Default float32.

    Returns:
      A transformation that needs `params`. State: 4 words per parameter. Elementwise: no collective, but for the norm
      of `max_norm`.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = adan(1.0, weight_decay=1.0)
      >>> x = jnp.array([3.0])
      >>> print(x + tx.update(x, tx.init(x), x)[0])  # (3 - 1) / 2
      [1.]

    Reference: Xie et al. Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models. 2022, arXiv
    2208.06677. optax.adan weights the differences by 1 - b2 at the official b2, which is another method.
    """
    checks.switch(proximal=proximal)
    checks.real("max_norm", max_norm, "(0, inf]", optional=True)
    return optimizer(
        Method("adan", learning_rate, weight_decay, weight_decay_mask),
        *([] if max_norm is None else [clip_by_global_norm(max_norm)]),
        scale_by_adan(b1=b1, b2=b2, b3=b3, eps=eps, mu_dtype=mu_dtype),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        *([_proximal(learning_rate, weight_decay, weight_decay_mask)] if proximal else []),
        scale_by_learning_rate(learning_rate),
    )


register(scale_by_adan, form="primitive", paper=PAPER, words=4, golden=("modern/adan",))
register(adan, form="optimizer", paper=PAPER, words=4, golden=("modern/adan",), race=Race(5e-3))
