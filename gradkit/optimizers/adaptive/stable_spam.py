"""Stable-SPAM: Adam that clips spikes of the gradient, scales it to its running norm, and resets its moments."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema, ema_of_square, over_root
from gradkit.engine.core import (
    at_count,
    bias_correction,
    bias_corrections,
    cast,
    increment,
    optimizer,
    real_dtype,
    scalar,
    transformation,
    wide_dtype,
    zeros,
)
from gradkit.engine.norms import packed_norms
from gradkit.engine.sums import zeros_along
from gradkit.leaves import Layout, Method, axes_of, map_named, names, resolve_layout, tensor_axes
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate
from gradkit.types import DTypeLike, Mask, PyTree, Scalar, ScalarOrSchedule

PAPER = Paper("Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam", "Huang et al.", 2025, "2502.17055")
NAME = "stable_spam"


def per_tensor(params: PyTree, layout: Layout | None) -> Any:
    """Zeros, one number per tensor, with as many axes as the leaf."""

    def one(name: str, x: Any) -> jax.Array:
        summed_axes = tensor_axes(axes_of(layout, name, x.shape), x.shape)
        return zeros_along(x, summed_axes, real_dtype(wide_dtype(x.dtype)))

    return map_named(one, params)


def cosine(total_steps: int, eta_min: Any, value: Any) -> Callable[[jax.Array], jax.Array]:
    """value (eta_min + (1 - eta_min) (1 + cos(pi t / (total_steps + 1))) / 2) of step t = count + 1, which ends at
    eta_min value.

    >>> [round(float(cosine(3, 0.5, 0.8)(jnp.array(t))), 4) for t in (1, 3, 9)]
    [0.6, 0.4, 0.4]
    """

    def at(count: jax.Array) -> jax.Array:
        dtype = jnp.result_type(float)
        t = jnp.minimum(count + 1, total_steps + 1).astype(dtype)
        low = jnp.asarray(eta_min, dtype)
        return jnp.asarray(value, dtype) * (low + (1 - low) * (1 + jnp.cos(math.pi * t / (total_steps + 1))) / 2)

    return at


class AdaptiveSpikeClipState(NamedTuple):
    """Number of updates made, and per tensor the running mean of its largest entry."""

    count: jax.Array
    largest: Any


@jax.jit
def _clipped(g: jax.Array, M: jax.Array, mean: jax.Array, correction: jax.Array) -> jax.Array:
    limit = mean / correction
    size = jnp.abs(g)
    factor = limit / jnp.where(M > 0, M, jnp.ones_like(M))
    return jnp.where(size > limit, g * cast(factor, g.dtype), g)


def adaptive_spike_clip(
    gamma3: Scalar = 0.999, *, layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Scales down the entries of a tensor that are above the running mean of its largest entry.

    Equations, per tensor (every layer of a stack is one):

        M = max |g|,  mu <- gamma3 mu + (1 - gamma3) M,  limit = mu / (1 - gamma3^t)
        g <- g limit / M                                 in the entries with |g| > limit

    So the largest entry becomes the limit, and no entry grows. A tensor whose largest entry is not finite leaves mu
    unchanged.

    Args:
      gamma3: decay of the mean, in [0, 1). Default 0.999 (official code).
      layout: which axes are stacks.

    Returns:
      A transformation. State: one number per tensor, and a counter. Collectives: one maximum per tensor where leaves
      are sharded.

    Raises:
      ValueError: a decay outside its range.

    Example:
      >>> tx = adaptive_spike_clip(0.5)
      >>> _, state = tx.update(jnp.array([1.0, 0.5]), tx.init(jnp.zeros(2)))
      >>> print(tx.update(jnp.array([9.0, 0.5]), state)[0].round(4))  # the limit is (0.25 + 4.5) / 0.75
      [6.3333 0.5   ]

    Reference: Huang et al. Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam. 2025, arXiv 2502.17055.
    """
    checks.layout(layout)
    name = "adaptive_spike_clip"
    checks.real("gamma3", gamma3, "[0, 1)")

    def init(params: optax.Params) -> AdaptiveSpikeClipState:
        resolve_layout(layout, params, method=name, matters=True)
        return AdaptiveSpikeClipState(jnp.zeros((), jnp.int32), per_tensor(params, layout))

    def update(updates: Any, state: AdaptiveSpikeClipState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        count = increment(state.count)
        of_mean = bias_corrections(gamma3, count)
        leaves, structure = jax.tree.flatten(updates)
        new, kept = [], []
        for path, g, mean in zip(names(updates), leaves, jax.tree.leaves(state.largest), strict=True):
            summed_axes = tensor_axes(axes_of(layout, path, g.shape), g.shape)
            M = jnp.max(jnp.abs(g), axis=summed_axes, keepdims=True, initial=0).astype(mean.dtype)
            after = jnp.where(jnp.isfinite(M), ema(mean, M, gamma3), mean)
            new.append(_clipped(g, M, after, of_mean(M)))
            kept.append(after)
        return structure.unflatten(new), AdaptiveSpikeClipState(count, structure.unflatten(kept))

    return transformation(name, init, update, complex_leaves=True)


class AdaptiveNormState(NamedTuple):
    """Number of updates made, and per tensor the running means of its norm and of the square of it."""

    count: jax.Array
    norm: Any
    square: Any


@jax.jit
def _scaled(g: jax.Array, n: jax.Array, a: jax.Array, b: jax.Array, by: tuple[Any, Any], eps: Any) -> jax.Array:
    size = a / scalar(by[0], a) / (jnp.sqrt(b / scalar(by[1], b)) + scalar(eps, b))
    return g * cast(jnp.where(n > 0, size / jnp.where(n > 0, n, jnp.ones_like(n)), jnp.zeros_like(n)), g.dtype)


def adaptive_norm(
    gamma1: ScalarOrSchedule = 0.7, gamma2: Scalar = 0.9, *, eps: Scalar = 1e-8, layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Scales every tensor to the running mean of its norm over the root of the running mean of the norm's square.

    Equations, per tensor (every layer of a stack is one):

        n = |g|,  a <- gamma1 a + (1 - gamma1) n,  b <- gamma2 b + (1 - gamma2) n^2
        g <- g / n (a / (1 - gamma1^t)) / (sqrt(b / (1 - gamma2^t)) + eps)

    Norms that stay the same become 1. A gradient of zeros stays a gradient of zeros; a norm that is not finite leaves a
    and b unchanged.

    Args:
      gamma1: decay of the mean of the norm, in [0, 1), or a schedule. Default 0.7 (official code).
      gamma2: decay of the mean of its square, in [0, 1). Default 0.9 (official code).
      eps: added to the root, in the gradient's units, >= 0. Default 1e-8 (official code).
      layout: which axes are stacks.

    Returns:
      A transformation. State: two numbers per tensor, and a counter. Collectives: one scalar per tensor where leaves
      are sharded.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = adaptive_norm(eps=0.0)
      >>> g, state = jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2))
      >>> for factor in (1.0, 1.0, 10.0):
      ...     u, state = tx.update(factor * g, state)
      ...     print(u.round(4))
      [0.6 0.8]
      [0.6 0.8]
      [0.5004 0.6672]

    Reference: Huang et al. Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam. 2025, arXiv 2502.17055.
    """
    checks.layout(layout)
    name = "adaptive_norm"
    checks.real("gamma1", gamma1, "[0, 1)", schedule=True)
    checks.real("gamma2", gamma2, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")

    def init(params: optax.Params) -> AdaptiveNormState:
        resolve_layout(layout, params, method=name, matters=True)
        return AdaptiveNormState(jnp.zeros((), jnp.int32), per_tensor(params, layout), per_tensor(params, layout))

    def update(updates: Any, state: AdaptiveNormState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        count = increment(state.count)
        first = at_count(gamma1, state.count, f"{name}: gamma1")
        leaves, structure = jax.tree.flatten(updates)
        if not leaves:
            return updates, AdaptiveNormState(count, state.norm, state.square)
        norms = packed_norms(names(updates), "tensor", layout, leaves, large=(0,))
        new, a, b = [], [], []
        rows = zip(leaves, norms.own(norms.parts[0]), *map(jax.tree.leaves, state[1:]), strict=True)
        for g, n, mean, square in rows:
            n = n.astype(mean.dtype)
            good = jnp.isfinite(n)
            a.append(jnp.where(good, ema(mean, n, first), mean))
            b.append(jnp.where(good, ema_of_square(square, n, gamma2), square))
            by = bias_correction(first, count, n), bias_correction(gamma2, count, n)
            new.append(_scaled(g, n, a[-1], b[-1], by, eps))
        return structure.unflatten(new), AdaptiveNormState(count, structure.unflatten(a), structure.unflatten(b))

    return transformation(name, init, update, complex_leaves=True)


class ScaleByResettingAdamState(NamedTuple):
    """Number of updates made, number of updates since the last reset, and the two moments."""

    count: jax.Array
    since_reset: jax.Array
    mu: Any
    nu: Any


def _resetting_adam(b1: Any, b2: Any, eps: Any, reset_every: int, mu_dtype: Any) -> optax.GradientTransformation:
    def init(params: optax.Params) -> ScaleByResettingAdamState:
        count, since = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return ScaleByResettingAdamState(count, since, zeros(params, mu_dtype), zeros(params, real=True))

    def update(updates: Any, state: ScaleByResettingAdamState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        count, since = increment(state.count), state.since_reset
        mu, nu = state.mu, state.nu
        if reset_every:
            now = count % reset_every == 0
            since = jnp.where(now, jnp.zeros_like(since), since)
            mu, nu = (jax.tree.map(lambda m: jnp.where(now, jnp.zeros_like(m), m), old) for old in (mu, nu))
        since = increment(since)
        first = at_count(b1, state.count, f"{NAME}: b1")
        mu = jax.tree.map(lambda m, g: ema(m, g, first), mu, updates)
        nu = jax.tree.map(lambda v, g: ema_of_square(v, g, b2), nu, updates)
        of_mu, of_nu = bias_corrections(first, since), bias_corrections(b2, since)

        def direction(m: jax.Array, v: jax.Array, g: jax.Array) -> jax.Array:
            return over_root(cast(m, g.dtype), v, eps, x_by=cast(of_mu(g), g.dtype), v_by=of_nu(g))

        return jax.tree.map(direction, mu, nu, updates), ScaleByResettingAdamState(count, since, mu, nu)

    return transformation(NAME, init, update, complex_leaves=True)


def stable_spam(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    gamma1: Scalar = 0.7,
    gamma2: Scalar = 0.9,
    gamma3: Scalar = 0.999,
    reset_every: int = 1000,
    total_steps: int | None = None,
    eta_min: Scalar = 0.5,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW behind an adaptive clip of spikes and an adaptive scale of norms, with moments that are reset periodically.

    Equations, per tensor, at step t = 1, 2, ...:

        M = max |g|,  mu <- gamma3 mu + (1 - gamma3) M,  limit = mu / (1 - gamma3^t)
        g <- g limit / M                                         in the entries with |g| > limit
        n = |g|,  a <- gamma1' a + (1 - gamma1') n,  b <- gamma2 b + (1 - gamma2) n^2
        g <- g / n (a / (1 - gamma1'^t)) / (sqrt(b / (1 - gamma2^t)) + eps)
        at t = reset_every, 2 reset_every, ...:  m = v = 0 and c = 0, before this gradient enters;  c <- c + 1
        m <- b1' m + (1 - b1') g,  v <- b2 v + (1 - b2) g^2
        x <- x - learning_rate (m / (1 - b1'^c) / (sqrt(v / (1 - b2^c)) + eps) + weight_decay x)
        b1' = b1 h, gamma1' = gamma1 h:  h = 1, or with total_steps
                                         eta_min + (1 - eta_min) (1 + cos(pi t / (total_steps + 1))) / 2

    Args:
      learning_rate: step size >= 0, or a schedule, which scales the decay too.
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      eps: added to both roots, >= 0. Default 1e-8 (official code).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0 (official code).
      weight_decay_mask: which leaves decay. Default all.
      gamma1: decay of the mean of the norm, in [0, 1). Default 0.7 (official code).
      gamma2: decay of the mean of the norm's square, in [0, 1). Default 0.9 (official code).
      gamma3: decay of the mean of the largest entry, in [0, 1). Default 0.999 (official code).
      reset_every: steps between resets of the moments, >= 0; 0 for none. Default 1000 (official code).
      total_steps: number of steps over which b1 and gamma1 fall, >= 1. Default None: they are constant.
      eta_min: the share of b1 and gamma1 that remains at the end, in [0, 1]. Default 0.5 (official code).
      mu_dtype: dtype in which the first moment is kept. Default float32.
      layout: which axes are stacks: every layer of a scan has its own statistics.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter, three numbers per tensor, four counters.
      Collectives: one maximum and one norm per tensor where leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = stable_spam(0.5)
      >>> x = jnp.array([1.0, -5.0])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))
      [-0.5  0.5]

    Reference: Huang et al. Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam. 2025, arXiv 2502.17055;
    official code, commit 6a66da1. Departures: at a reset the official code makes one more step with the old moments and
    the bias correction of a first step, leaves that gradient out of the new moments, and restarts the counter of the
    statistics of clip and norm, whose means are then divided by a number that is far too small. Here the moments start
    from 0 with this gradient, and the statistics go on.
    """
    for name, value in (("b1", b1), ("b2", b2), ("gamma1", gamma1), ("gamma2", gamma2), ("gamma3", gamma3)):
        checks.real(name, value, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    checks.real("eta_min", eta_min, "[0, 1]")
    reset_every = checks.integer("reset_every", reset_every, 0)
    total_steps = checks.integer("total_steps", total_steps, 1, optional=True)
    checks.floating_dtype(mu_dtype=mu_dtype)
    first, norm = b1, gamma1
    if total_steps is not None:
        first, norm = (cosine(total_steps, eta_min, value) for value in (b1, gamma1))
    return optimizer(
        Method(NAME, learning_rate, weight_decay, weight_decay_mask),
        adaptive_spike_clip(gamma3, layout=layout),
        adaptive_norm(norm, gamma2, eps=eps, layout=layout),
        _resetting_adam(first, b2, eps, reset_every, mu_dtype),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


GOLDEN = ("modern/stable_spam", "modern/stable_spam_reset")
register(stable_spam, form="optimizer", paper=PAPER, words=2, collectives="norms", golden=GOLDEN, race=Race(5e-3))
register(adaptive_spike_clip, form="primitive", paper=PAPER, collectives="norms", golden=GOLDEN)
register(adaptive_norm, form="primitive", paper=PAPER, collectives="norms", golden=GOLDEN)
