"""SPAM: Adam that clips spikes of single entries by their second moment, and resets its moments now and then."""

import math
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
from gradkit.engine.late_decay import decay_after_step
from gradkit.leaves import Method
from gradkit.transforms import scale_by_learning_rate
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training", "Huang et al.", 2025, "2501.06842")


class ScaleBySpamState(NamedTuple):
    """Number of updates made, steps since the last reset, and the two moments."""

    count: jax.Array
    since_reset: jax.Array
    mu: Any
    nu: Any


@jax.jit
def _clipped(g: jax.Array, v: jax.Array, on: jax.Array, threshold: Any) -> jax.Array:
    limit = scalar(threshold, v) * v
    # A coordinate that never had a gradient has v = 0: clipping it to 0 would keep it there for ever.
    spike = on & (v > 0) & (jnp.square(g) > limit)
    return jnp.where(spike, jnp.sign(g) * jnp.sqrt(limit), g)


def _scale_by_spam(
    b1: Any, b2: Any, eps: Any, threshold: Any, reset_every: int, start_after: int, warmup_steps: int, mu_dtype: Any
) -> optax.GradientTransformationExtraArgs:
    def init(params: optax.Params) -> ScaleBySpamState:
        clock = jnp.full((), warmup_steps, jnp.int32)
        return ScaleBySpamState(jnp.zeros((), jnp.int32), clock, zeros(params, mu_dtype), zeros(params))

    def update(updates: Any, state: ScaleBySpamState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        n = increment(state.count)
        place = n % reset_every
        reset = place == 0
        on = (n >= start_after) & (place >= start_after)
        since = jnp.where(reset, jnp.zeros_like(n), increment(state.since_reset))
        kept = [jax.tree.map(lambda m: jnp.where(reset, jnp.zeros_like(m), m), old) for old in (state.mu, state.nu)]
        g = jax.tree.map(lambda g, v: _clipped(g, v, on, threshold), updates, kept[1])
        mu = jax.tree.map(lambda m, g: ema(m, g, b1), kept[0], g)
        nu = jax.tree.map(lambda v, g: ema_of_square(v, g, b2), kept[1], g)
        of_mu, of_nu = bias_corrections(b1, n), bias_corrections(b2, n)

        def direction(m: jax.Array, v: jax.Array, g: jax.Array) -> jax.Array:
            angle = math.pi * since.astype(g.dtype) / (warmup_steps + 1)
            share = 1 - jnp.where(since < warmup_steps, 0.99 * (1 + jnp.cos(angle)) / 2, jnp.zeros_like(angle))
            return over_root(cast(m, g.dtype), v, eps) * (share * jnp.sqrt(of_nu(v)) / of_mu(v))

        return jax.tree.map(direction, mu, nu, g), ScaleBySpamState(n, since, mu, nu)

    return transformation("spam", init, update)


def spam(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    threshold: Scalar = 5000.0,
    reset_every: int = 500,
    start_after: int = 20,
    warmup_steps: int = 150,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Spike-aware Adam: entries far above their second moment are clipped, and the moments are reset periodically.

    Equations, at step n = 1, 2, ...:

        at n mod reset_every = 0: m = v = 0 and k = 0, before the gradient enters; otherwise k <- k + 1
        g_n <- sign(g_n) sqrt(threshold v_{n-1})   where g_n^2 > threshold v_{n-1} > 0,
                                                   if n >= start_after and n mod reset_every >= start_after
        m_n = b1 m_{n-1} + (1 - b1) g_n,  v_n = b2 v_{n-1} + (1 - b2) g_n^2
        u_n = sqrt(1 - b2^n) / (1 - b1^n) m_n / (sqrt(v_n) + eps)
        w_k = 0.99 (1 + cos(pi k / (warmup_steps + 1))) / 2 for k < warmup_steps, 0 afterwards and before any reset
        x_n = (x_{n-1} - learning_rate (1 - w_k) u_n) (1 - learning_rate weight_decay)

    Args:
      learning_rate: step size >= 0, or a schedule.
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      eps: added to the root of the uncorrected moment, >= 0. Default 1e-6 (official code).
      weight_decay: decay after the step, >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      threshold: largest square of an entry as a multiple of its second moment, > 0. Default 5000 (official code).
      reset_every: steps between resets, >= 1. Default 500 (official code).
      start_after: steps after a reset, or the start, without clipping, >= 1. Default 20 (official code).
      warmup_steps: steps of the warm-up after a reset, >= 0. Default 150 (official code).
      mu_dtype: dtype in which the first moment is kept. Default float32.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter and two counters. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> tx = spam(0.5)
      >>> x = jnp.array([1.0, -5.0])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))
      [-0.5  0.5]

    Reference: Huang et al. SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training. 2025, arXiv 2501.06842.
    As in the official code, the count of the bias correction is not reset. Departures: an entry whose second moment is
    0 is not clipped, as the limit 0 would keep it at 0; eps is added to the root before the bias correction only; and
    the sparse momentum (`density`) is left out.
    """
    for name, value in (("b1", b1), ("b2", b2)):
        checks.real(name, value, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    checks.real("weight_decay", weight_decay, "[0, inf)", schedule=True)
    checks.real("threshold", threshold, "(0, inf)")
    reset_every = checks.integer("reset_every", reset_every, 1)
    start_after = checks.integer("start_after", start_after, 1)
    warmup_steps = checks.integer("warmup_steps", warmup_steps, 0)
    checks.floating_dtype(mu_dtype=mu_dtype)
    return optimizer(
        Method("spam", learning_rate, weight_decay, weight_decay_mask),
        _scale_by_spam(b1, b2, eps, threshold, reset_every, start_after, warmup_steps, mu_dtype),
        scale_by_learning_rate(learning_rate),
        decay_after_step("spam", learning_rate, weight_decay, weight_decay_mask),
    )


register(spam, form="optimizer", paper=PAPER, words=2, golden=("modern/spam",), race=Race(5e-3))
