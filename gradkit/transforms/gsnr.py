"""Variance-reduced gradients: every coordinate is scaled by the signal-to-noise ratio of its gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import (
    bias_corrections,
    divide,
    increment,
    need,
    scalar,
    transformation,
    widen,
    zeros,
)
from gradkit.engine.extras import GradientMoments
from gradkit.engine.matching import check_match
from gradkit.engine.norms import entries, packed_sums
from gradkit.leaves import Layout, names, resolve_layout
from gradkit.types import Scalar

PAPER = Paper(
    "Accelerating Large Batch Training via Gradient Signal to Noise Ratio (GSNR)", "Jiang et al.", 2023, "2309.13681"
)


def signal_to_noise(g: jax.Array, squares: jax.Array, gamma: Any, eps: Any) -> jax.Array:
    """The ratio r of one array, before it is divided by its mean over the tensor."""
    noise = squares - jnp.square(g)
    # The difference of equal numbers is rounding, not noise.
    noiseless = noise <= squares * (8 * jnp.finfo(g.dtype).eps if eps is None else scalar(eps, g))
    r = jnp.square(g) / jnp.where(noiseless, jnp.ones_like(noise), noise)
    alone = jnp.where(g == 0, jnp.asarray(scalar(gamma, g), g.dtype), jnp.ones((), g.dtype))
    return jnp.where(noiseless, alone, r)


class ScaleByGsnrState(NamedTuple):
    """Number of updates made, and the running mean of the ratio (None without b3)."""

    count: jax.Array
    ratio: Any


def _squares(extra: dict[str, Any], updates: Any) -> tuple[Any, Any]:
    """The mean and the mean of squares over the parts of the batch, in the structure and dtype of the updates."""
    if extra.get("grad_sq") is not None and extra.get("grad_moments") is None:
        mean, squares = updates, extra["grad_sq"]
    else:
        moments = need("scale_by_gsnr", extra, "grad_moments")
        if not isinstance(moments, GradientMoments):
            raise ValueError(
                "scale_by_gsnr: grad_moments must be a gk.gradients.GradientMoments, as gk.gradients.gradient_moments "
                f"makes it, got {type(moments).__name__}; pass a mean of squares as grad_sq=... instead"
            )
        mean, squares, count = moments.mean, moments.mean_of_squares, moments.count
        known = checks.readable(count)
        if known is not None and known < 2:
            raise ValueError(
                f"scale_by_gsnr: grad_moments must be of at least 2 parts of the batch, got {count}; compute the "
                "gradient by microbatches or replicas"
            )
    for tree in (mean, squares):
        check_match("scale_by_gsnr", tree, updates)
    return tuple(jax.tree.map(lambda x, u: x.astype(u.dtype), widen(tree), updates) for tree in (mean, squares))


def scale_by_gsnr(
    *, gamma: Scalar = 0.1, b3: Scalar | None = 0.9, eps: Scalar | None = None, layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Rescales every coordinate by the signal-to-noise ratio of its gradient, between gamma and 1.

    Equations, elementwise, with gradients g_1, ..., g_k of k parts of the batch (microbatches, or replicas):

        g = mean_d g_d              rho^2 = mean_d g_d^2 - g^2
        r = g^2 / rho^2             where rho^2 = 0:  1, or gamma where g = 0 as well
        r <- clip(r / mean of r over the tensor, gamma, 1)
        p_t = b3 p_{t-1} + (1 - b3) r
        g^ = p_t / (1 - b3^t) g     without b3:  r g

    The links that follow get g^ in place of g. Put it first, before any momentum.

    Args:
      gamma: smallest ratio, in (0, 1]. Default 0.1 (unverified: no code is public). With 1 nothing is rescaled.
      b3: decay of the running mean of the ratio, in [0, 1), or None: no memory. Default 0.9.
      eps: variances of at most this fraction of the mean square count as 0, >= 0. Default None: 8 units of rounding,
        the error of the difference of two equal means.
      layout: which axes are stacks: every layer of a scan has its own mean.

    Returns:
      A transformation that needs `grad_moments`, the result of `gk.gradients.gradient_moments` over k >= 2 parts of the
      batch, or else `grad_sq`, only the mean of squares, where the incoming updates are the mean. State: 1 word per
      parameter and a counter; without b3 a counter.
      Collectives: one scalar per tensor where leaves are sharded; the moments themselves cost an all-reduce of one
      more word per parameter.

    Raises:
      ValueError: a hyperparameter outside its range; moments missing, of fewer than two parts, or of another tree.

    Example:
      >>> tx, g = scale_by_gsnr(b3=None), jnp.array([1.0, 1.0, 1.0])
      >>> noise = jnp.array([1.0, 1.0, 100.0])  # a variance: the third coordinate is mostly noise
      >>> [round(float(u), 4) for u in tx.update(g, tx.init(g), g, grad_sq=g**2 + noise)[0]]
      [1.0, 1.0, 0.1]

    Reference: Jiang et al. Accelerating Large Batch Training via Gradient Signal to Noise Ratio (GSNR). 2023, arXiv
    2309.13681. The paper does not define the ratio where the gradients do not vary; here it is 1 there.
    """
    checks.layout(layout)
    checks.real("gamma", gamma, "(0, 1]")
    checks.real("b3", b3, "[0, 1)", optional=True)
    checks.real("eps", eps, "[0, inf)", optional=True)

    def init(params: optax.Params) -> ScaleByGsnrState:
        resolve_layout(layout, params, method="scale_by_gsnr", matters=True)
        return ScaleByGsnrState(jnp.zeros((), jnp.int32), None if b3 is None else zeros(params))

    def update(updates: Any, state: ScaleByGsnrState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params
        mean, squares = _squares(extra, updates)
        count = increment(state.count)
        raw, structure = jax.tree.flatten(jax.tree.map(lambda g, s: signal_to_noise(g, s, gamma, eps), mean, squares))
        known = names(updates)
        sums = packed_sums(known, "tensor", layout, raw, like=raw)
        sizes = [max(entries(name, "tensor", layout, x.shape), 1) for name, x in zip(known, raw, strict=True)]
        shares = [s / n for s, n in zip(sums.own(sums.parts[0]), sizes, strict=True)]
        clipped = [
            jnp.clip(divide(r, m), scalar(gamma, r), jnp.ones((), r.dtype)) for r, m in zip(raw, shares, strict=True)
        ]
        ratio = structure.unflatten(clipped)
        if b3 is None:
            return jax.tree.map(lambda r, u: r * u, ratio, updates), ScaleByGsnrState(count, None)

        p = jax.tree.map(lambda p, r: ema(p, r, b3), state.ratio, ratio)
        c3 = bias_corrections(b3, count)
        scaled = jax.tree.map(lambda p, u: p / c3(p) * u, p, updates)
        return scaled, ScaleByGsnrState(count, p)

    return transformation("scale_by_gsnr", init, update)


register(scale_by_gsnr, form="primitive", paper=PAPER, needs=("grad_moments",), words=1, collectives="norms")
