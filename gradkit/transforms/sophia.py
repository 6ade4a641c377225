"""Sophia's direction: momentum over a curvature that is refreshed every few steps, every coordinate clipped."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import bias_correction as correction
from gradkit.engine.core import increment, scalar, transformation, zeros
from gradkit.engine.norms import global_sums
from gradkit.transforms.with_curvature import curvature_of, fitting
from gradkit.types import DTypeLike, Scalar

PAPER = Paper(
    "Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training",
    "Liu et al.",
    2023,
    "2305.14342",
)


class ScaleBySophiaState(NamedTuple):
    """Number of updates made, the momentum, the mean of the curvature, and where asked the win rate as a metric."""

    count: jax.Array
    mu: Any
    h: Any
    metrics: dict[str, jax.Array]


def clipped(m: jax.Array, h: jax.Array, gamma: Any, eps: Scalar, clip: Any, denominator: str) -> jax.Array:
    """The direction of one leaf."""
    scaled = scalar(gamma, h) * h
    below = scaled + scalar(eps, h) if denominator == "add" else jnp.maximum(scaled, scalar(eps, h))
    most = scalar(clip, m)
    inside = jnp.abs(m) < most * below
    return jnp.where(inside, m / jnp.where(inside, below, jnp.ones_like(below)), most * jnp.sign(m))


def scale_by_sophia(
    *,
    b1: Scalar = 0.965,
    b2: Scalar = 0.99,
    gamma: Scalar = 0.05,
    eps: Scalar = 1e-12,
    clip: Scalar = 1.0,
    update_interval: int = 10,
    denominator: str = "max",
    bias_correction: bool = False,
    lagged: bool = False,
    measure_win_rate: bool = False,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides the momentum by a curvature that is refreshed every few steps, and clips every coordinate.

    Equations, with h_t an estimate of the diagonal of the Hessian:

        every k steps:   h = b2 h + (1 - b2) h_t
        m_t = b1 m_{t-1} + (1 - b1) g_t
        d_t = m_t / max(gamma h, eps), clipped to [-clip, clip]             denominator="max" (paper)
        d_t = sign(m_t) min(|m_t| / (gamma h + eps), clip)                  denominator="add" (official code)

    Sophia-G estimates by `gk.gradients.gauss_newton_bartlett_diag`, Sophia-H by Hutchinson's z (H z). Where the
    denominator is not positive, the direction of a coordinate is clip sign(m_t).

    Args:
      b1: decay of the momentum, in [0, 1). Default 0.965 (official code's class default).
      b2: decay of the curvature per refresh, in [0, 1). Default 0.99 (official code's class default).
      gamma: scale of the curvature, > 0. Default 0.05, as the paper is quoted for Sophia-G, which
        was not read (0.01 for Sophia-H); the official code's class default is 0.04.
      eps: smallest denominator, or added to it, >= 0. Default 1e-12 (official code of Sophia-H; that of
        Sophia-G adds 1e-15).
      clip: largest entry of the direction, > 0. Default 1 (paper).
      update_interval: k, steps between refreshes, >= 1; the first step refreshes. Default 10 (official
        configurations).
      denominator: "max" (paper) or "add" (official code). Default "max".
      bias_correction: whether the momentum is divided by 1 - b1^t. Default False (paper).
      lagged: whether the step is made before the refresh, with the curvature of the previous refresh: sign steps until
        the second one. With bias_correction this is optax's. Default False (paper).
      measure_win_rate: whether the fraction of entries that are not clipped is published as the metric `win_rate`; the
        paper keeps it between 0.1 and 0.5. Default False, because it costs an all-reduce.
      mu_dtype: dtype in which the momentum is kept. Default float32.

    Returns:
      A transformation that needs the extra argument `curvature` on steps that refresh: a tree, or a function () -> tree
      that is called only on those steps. State: 2 words per parameter and a counter. Elementwise: no collective, or
      one scalar with `measure_win_rate`.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, curvature missing on a step that refreshes (under
        jit, where steps cannot be distinguished, on any) or of another structure.

    Example:
      >>> tx = scale_by_sophia(b1=0.0, b2=0.0, gamma=1.0)
      >>> g = jnp.array([1.0, -5.0, 0.0])
      >>> print(tx.update(g, tx.init(g), curvature=jnp.array([4.0, 2.0, 1.0]))[0])
      [ 0.25 -1.    0.  ]

    Reference: Liu et al. Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training. 2023,
    arXiv 2305.14342. The official code does not have the batch size B in h and multiplies by it in the denominator.
    optax's sophia refreshes after the step and corrects the bias of m.
    """
    checks.floating_dtype(mu_dtype=mu_dtype)
    for name, value in (("b1", b1), ("b2", b2)):
        checks.real(name, value, "[0, 1)")
    checks.real("gamma", gamma, "(0, inf)")
    checks.real("eps", eps, "[0, inf)")
    checks.real("clip", clip, "(0, inf)")
    update_interval = checks.integer("update_interval", update_interval, 1)
    checks.choice("denominator", denominator, ("max", "add"))
    for name, value in (
        ("bias_correction", bias_correction),
        ("lagged", lagged),
        ("measure_win_rate", measure_win_rate),
    ):
        checks.choice(name, value, (True, False))
    metrics = {"win_rate": jnp.zeros((), jnp.float32)} if measure_win_rate else {}

    def init(params: optax.Params) -> ScaleBySophiaState:
        return ScaleBySophiaState(jnp.zeros((), jnp.int32), zeros(params, mu_dtype), zeros(params), dict(metrics))

    def refreshed(state: ScaleBySophiaState, updates: Any, extra: Any) -> Any:
        given, due = extra.get("curvature"), state.count % update_interval == 0

        def follow(h: jax.Array, new: jax.Array) -> jax.Array:
            return ema(h, new, b2)

        if given is None and not isinstance(due, Tracer) and not bool(due):
            return state.h
        if checks.is_function(given, updates):

            def fresh() -> Any:
                return jax.tree.map(follow, state.h, fitting("scale_by_sophia", given(), updates))

            return jax.lax.cond(due, fresh, lambda: state.h)
        given = curvature_of("scale_by_sophia", extra, updates)
        return jax.tree.map(lambda h, new: jnp.where(due, follow(h, new), h), state.h, given)

    def update(updates: Any, state: ScaleBySophiaState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params
        count = increment(state.count)

        def mean(m: jax.Array, g: jax.Array) -> jax.Array:
            return ema(m, g, b1)

        mu = jax.tree.map(mean, state.mu, updates)
        h = refreshed(state, updates, extra)
        m = jax.tree.map(lambda m, g: m.astype(g.dtype), mu, updates)
        if bias_correction:
            m = jax.tree.map(lambda m: m / correction(b1, count, m), m)
        d = jax.tree.map(lambda m, h: clipped(m, h, gamma, eps, clip, denominator), m, state.h if lagged else h)
        published = {}
        if measure_win_rate:
            inside = jax.tree.map(lambda d: (jnp.abs(d) < scalar(clip, d)).astype(d.dtype), d)
            won, all_ = global_sums(inside, jax.tree.map(jnp.ones_like, inside))
            published = {"win_rate": (won / jnp.maximum(all_, 1)).astype(jnp.float32)}
        return d, ScaleBySophiaState(count, mu, h, published)

    return transformation("scale_by_sophia", init, update)


SHARED: dict[str, Any] = {"paper": PAPER, "needs": ("curvature",), "words": 2, "golden": ("matrix/sophia_g",)}
register(scale_by_sophia, form="primitive", **SHARED, same_as="sophia")
