"""ZClip: clipping by how far the norm of a gradient is above the running mean of norms.

n_t = |g_t|, the global norm;   for t > warmup_steps, with the mean mu and the variance s^2 of the norms before:
z_t = (n_t - mu) / (s + eps)
limit = clip_factor (mu + z_threshold^2 s / z_t)     where z_t > z_threshold                    mode="zscore"
limit = mu + z_threshold s                           where n_t > mu + z_threshold s             mode="percentile"
g_t <- g_t e / (n_t + 1e-6) where n_t > e,           e = min(limit, or n_t where there is none, max_norm)
mu <- alpha mu + (1 - alpha) q,  then  s^2 <- alpha s^2 + (1 - alpha) (q - mu)^2,     q = limit, or n_t
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import increment, real_dtype, scalar, transformation, wide_dtype
from gradkit.engine.norms import global_norm
from gradkit.types import Scalar

NAME = "zclip"
MODES = ("zscore", "percentile")
OPTIONS = ("adaptive_scaling", "mean")


class ZclipState(NamedTuple):
    """Number of norms seen, their running mean and variance, and the metrics."""

    count: jax.Array
    mean: jax.Array
    var: jax.Array
    metrics: dict[str, jax.Array]


def zclip(
    *,
    alpha: Scalar = 0.97,
    z_threshold: Scalar = 2.5,
    max_norm: Scalar | None = 1.0,
    warmup_steps: int = 25,
    mode: str = "zscore",
    clip_option: str = "adaptive_scaling",
    clip_factor: Any = 1.0,
    skip_update_on_spike: bool = False,
    eps: Scalar = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """Shortens gradients whose global norm is a spike among the norms before; the first link of a chain.

    Equations, with n_t = |g_t| over all leaves, and the running mean mu and variance s^2 of norms:

        t <= warmup_steps:  g_t min(1, max_norm / (n_t + 1e-6)), and mu, s^2 are those of the norms so far (unclipped)
        afterwards:         z_t = (n_t - mu) / (s + eps)
        limit = clip_factor (mu + z_threshold^2 s / z_t)  where z_t > z_threshold                mode="zscore"
                (clip_option="mean": mu)
        limit = mu + z_threshold s                        where n_t is above it                  mode="percentile"
        e = min(limit, or n_t where there is none, max_norm);     g_t e / (n_t + 1e-6) where n_t > e
        mu <- alpha mu + (1 - alpha) q,  then  s^2 <- alpha s^2 + (1 - alpha) (q - mu)^2,   q = limit, or n_t

    The larger the spike, the lower the limit. A norm that is not finite is passed on, and enters no statistic.

    Args:
      alpha: decay of mean and variance, in [0, 1). Default 0.97 (paper).
      z_threshold: standard deviations above the mean that make a spike, > 0. Default 2.5 (paper).
      max_norm: largest norm in any case, > 0, or None for none. Default 1 (official code).
      warmup_steps: number of norms that the first mean and variance are of, >= 1. Default 25 (official code).
      mode: "zscore" (default, paper), whose limit falls with the size of the spike, or "percentile", a fixed one.
      clip_option: with "zscore", "adaptive_scaling" (default, paper), or "mean", which clips spikes to the mean.
      clip_factor: factor of the limit of "adaptive_scaling", > 0. Default 1 (official code).
      skip_update_on_spike: whether spikes leave mean and variance as they are. Default False: their limit enters.
      eps: added to the standard deviation in z_t, > 0. Default 1e-6 (official code).

    Returns:
      A transformation. State: three scalars; metrics `gradient_norm` and `clipped` (1 or 0). Collectives: one scalar.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> tx = zclip(warmup_steps=2, max_norm=None, mode="percentile", z_threshold=1.0)
      >>> state = tx.init(jnp.zeros(1))
      >>> for g in (1.0, 3.0, 50.0):  # mean 2, standard deviation 1
      ...     u, state = tx.update(jnp.array([g]), state)
      >>> print(u.round(4))
      [3.]

    Reference: Kumar et al. ZClip: Adaptive Spike Mitigation for LLM Pre-Training. 2025, arXiv 2504.02507. The official
    code lets a norm that is no number into the statistics, which then are none for ever.
    """
    checks.switch(skip_update_on_spike=skip_update_on_spike)
    checks.real("alpha", alpha, "[0, 1)")
    checks.real("z_threshold", z_threshold, "(0, inf)")
    checks.real("max_norm", max_norm, "(0, inf]", optional=True)
    warmup_steps = checks.integer("warmup_steps", warmup_steps, 1)
    checks.choice("mode", mode, MODES)
    checks.choice("clip_option", clip_option, OPTIONS)
    checks.real("clip_factor", clip_factor, "(0, inf)")
    checks.real("eps", eps, "(0, inf)")

    def published(norm: jax.Array, clipped: jax.Array) -> dict[str, jax.Array]:
        return {"gradient_norm": norm.astype(jnp.float32), "clipped": clipped.astype(jnp.float32)}

    def init(params: optax.Params) -> ZclipState:
        dtypes = [real_dtype(wide_dtype(x.dtype)) for x in jax.tree.leaves(params)]
        dtype = max(dtypes, key=lambda d: d.itemsize, default=jnp.dtype(jnp.float32))
        mean, second, *zeros = (jnp.zeros((), dtype) for _ in range(4))
        return ZclipState(jnp.zeros((), jnp.int32), mean, second, published(*zeros))

    def limited(n: jax.Array, mean: jax.Array, std: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Whether a norm is a spike, and the limit of one that is."""
        threshold = scalar(z_threshold, n)
        if mode == "percentile":
            limit = mean + threshold * std
            return n > limit, limit
        z = (n - mean) / (std + scalar(eps, n))
        spike = z > threshold
        if clip_option == "mean":
            return spike, mean
        return spike, scalar(clip_factor, n) * (mean + threshold**2 * std / jnp.where(spike, z, jnp.ones_like(z)))

    def update(updates: Any, state: ZclipState, params: Any = None, **extra: Any) -> tuple[Any, ZclipState]:
        del params, extra
        n = global_norm(updates).astype(state.mean.dtype)
        mean, var = state.mean, state.var
        warm = state.count < warmup_steps
        spike, limit = limited(n, mean, jnp.sqrt(var))
        spike &= ~warm
        q = jnp.where(spike, limit, n)
        e = q if max_norm is None else jnp.minimum(q, scalar(max_norm, q))
        finite = jnp.isfinite(n)
        clipped = finite & (n > e)
        # During the warm-up the factor is that of torch, also just below the limit.
        if max_norm is not None:
            clipped |= finite & warm & (n + 1e-6 > scalar(max_norm, n))
        factor = jnp.where(clipped, jnp.where(clipped, e, 1) / (n + 1e-6), jnp.ones_like(n))
        if max_norm is not None:
            of_warmup = jnp.minimum(scalar(max_norm, n) / (n + 1e-6), jnp.ones_like(n))
            factor = jnp.where(warm & finite, of_warmup, factor)

        k = (state.count + 1).astype(n.dtype)
        start = mean + (n - mean) / k
        start_var = var + ((n - mean) * (n - start) - var) / k
        a = scalar(alpha, n)
        later = a * mean + (1 - a) * q
        later_var = a * var + (1 - a) * jnp.square(q - later)
        known = finite & ~spike if skip_update_on_spike else finite
        mean = jnp.where(known, jnp.where(warm, start, later), mean)
        var = jnp.where(known, jnp.where(warm, start_var, later_var), var)
        count = jnp.where(finite, increment(state.count), state.count)
        new = jax.tree.map(lambda g: g * factor.astype(g.dtype), updates)
        return new, ZclipState(count, mean, var, published(n, clipped))

    return transformation(NAME, init, update, complex_leaves=True)


register(
    zclip,
    form="primitive",
    paper=Paper("ZClip: Adaptive Spike Mitigation for LLM Pre-Training", "Kumar et al.", 2025, "2504.02507"),
    collectives="norms",
    golden=("modern/zclip", "modern/zclip_percentile"),
)
