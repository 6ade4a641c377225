"""LoRA-GA: an adapter whose first step is the best approximation of rank 2r of a step of the full weight."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype
from gradkit.engine.keys import as_key
from gradkit.linalg.svd import signed_svd, with_fixed_signs
from gradkit.types import Key, Scalar

PAPER = Paper("LoRA-GA: Low-Rank Adaptation with Gradient Approximation", "Wang et al.", 2024, "2407.05000")
DIRECTIONS = ("ArB2r", "A2rBr", "ArBr")
SCALES = ("stable", "gd", "unit", "weightS")
POWER_ITERATIONS, OVERSAMPLING = 4, 4


def _matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y, precision="highest")


def _leading(G: jax.Array, rank: int, svd: str, key: Any) -> tuple[jax.Array, jax.Array]:
    """The first 2 rank columns of U and V of G^T, or of a sketch of it."""
    if svd == "exact":
        U, _, Vt = signed_svd(G.T)
        return U, Vt.T
    q = min(OVERSAMPLING * rank, *G.shape)
    Q = jnp.linalg.qr(_matmul(G.T, jax.random.normal(key, (G.shape[0], q), G.dtype)))[0]
    for _ in range(POWER_ITERATIONS):
        Q = jnp.linalg.qr(_matmul(G.T, jnp.linalg.qr(_matmul(G, Q))[0]))[0]
    U, _, Vt = jnp.linalg.svd(_matmul(Q.T, G.T), full_matrices=False)
    U, Vt = with_fixed_signs(_matmul(Q, U), Vt)
    return U, Vt.T


def lora_ga_init(
    weight: jax.Array,
    gradient: jax.Array,
    rank: int,
    alpha: Scalar,
    *,
    scale: str = "stable",
    gamma: Any = 16.0,
    direction: str = "ArB2r",
    use_rslora: bool = True,
    norm_clip: bool = False,
    svd: str = "exact",
    key: Key | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Makes an adapter, and the frozen weight that belongs to it, from a gradient of the full weight.

    Equations, with the adapter a (in, r), b (r, out), the gradient G (in, out) of w, and s = alpha / sqrt(r), or
    alpha / r without rsLoRA:

        y = x (w' + s a b)                                                   the layer
        G^T = U S V^T                                                        U of outputs, V of inputs
        a = V[:, :r],        b = U[:, r:2r]^T                                direction "ArB2r"
        a = V[:, r:2r],      b = U[:, :r]^T                                  direction "A2rBr"
        a = V[:, 1:2r:2],    b = U[:, 0:2r:2]^T                              direction "ArBr"
        a, b <- a, b times out^(1/4) / sqrt(gamma)                           scale "stable"
        a, b <- a, b divided by s                                            scale "gd"
        a, b <- a, b times the mean over i < r of sqrt(S_w,i / s)            scale "weightS", S_w singular values of w
        a, b <- a, b times sqrt(rho),   rho = min(1, max|w| / max|s a b|)    with norm_clip
        w' = w - s a b                                                       the output of the layer does not change

    Args:
      weight: w, (in, out), floating point.
      gradient: G, of its shape: the mean of the full gradient over a few batches (official code: 64 of 2).
      rank: r, >= 1, at most half the short side.
      alpha: > 0; the model multiplies x a b by alpha / sqrt(r), or by alpha / r.
      scale: "stable" (paper), "gd", "unit" (no change) or "weightS". Default "stable" (official code).
      gamma: > 0, for the scale "stable". Default 16 (official code).
      direction: which singular vectors a and b get: "ArB2r" (paper), "A2rBr" or "ArBr". Default "ArB2r".
      use_rslora: whether s is alpha / sqrt(r) rather than alpha / r. Default True (official runs).
      norm_clip: whether the adapter is shrunk where its largest entry exceeds the weight's. Default False.
      svd: "exact", or "randomized": the decomposition of a sketch of 4r columns after 4 power iterations. Default
        "exact".
      key: a random key (typed key or integer) for "randomized".

    Returns:
      (lora_a (in, r), lora_b (r, out), w'), in the dtype of the weight; the decomposition is made in float32 or wider.

    Raises:
      ValueError: shapes that differ or are no matrix, an argument outside its range, 2r above the short side, a
        gradient of zeros where values can be read, "randomized" without a key.

    Example:
      >>> w, g = jnp.eye(3), jnp.diag(jnp.array([4.0, 2.0, 0.0]))
      >>> a, b, frozen = lora_ga_init(w, g, 1, 2.0, scale="unit")
      >>> print(a.T, b)
      [[1. 0. 0.]] [[0. 1. 0.]]
      >>> print(frozen + 2.0 * a @ b)
      [[1. 0. 0.]
       [0. 1. 0.]
       [0. 0. 1.]]

    Reference: Wang et al. LoRA-GA: Low-Rank Adaptation with Gradient Approximation. 2024, arXiv 2407.05000. Kernels
    here are (in, out), the transposed of torch's; the fourth root is that of the number of outputs. The entry of
    largest absolute value of a column of U is positive, so that a and b do not depend on the library that decomposed G.
    """
    checks.arrays(weight=weight, gradient=gradient)
    checks.switch(use_rslora=use_rslora, norm_clip=norm_clip)
    checks.integer("rank", rank, 1)
    checks.real("alpha", alpha, "(0, inf)")
    checks.real("gamma", gamma, "(0, inf)")
    checks.choice("scale", scale, SCALES)
    checks.choice("direction", direction, DIRECTIONS)
    checks.choice("svd", svd, ("exact", "randomized"))
    floating = all(jnp.issubdtype(x.dtype, jnp.floating) for x in (weight, gradient))
    if weight.ndim != 2 or weight.shape != gradient.shape or not floating:
        raise ValueError(f"weight and gradient must be floating point (in, out), got {weight.shape}, {gradient.shape}")
    if 2 * rank > min(weight.shape):
        raise ValueError(
            f"rank must be at most {min(weight.shape) // 2}, half the short side of {weight.shape}, got {rank}"
        )
    if svd == "randomized" and key is None:
        raise ValueError("key must be a random key with svd='randomized', got None")
    some = jnp.any(gradient != 0)
    if not isinstance(some, Tracer) and not bool(some):
        raise ValueError(
            "gradient must not be zero everywhere, got zeros, which have no singular vectors; pass a gradient"
        )
    w, G = (x.astype(wide_dtype(weight.dtype)) for x in (weight, gradient))
    s = jnp.asarray(alpha).astype(w.dtype) / (rank**0.5 if use_rslora else rank)
    U, V = _leading(G, rank, svd, None if key is None else as_key(key))
    first, second, even, odd = slice(rank), slice(rank, 2 * rank), slice(0, 2 * rank, 2), slice(1, 2 * rank, 2)
    of_a, of_b = {"ArB2r": (first, second), "A2rBr": (second, first), "ArBr": (odd, even)}[direction]
    if scale == "stable":
        size = w.shape[1] ** 0.25 / jnp.sqrt(jnp.asarray(gamma).astype(w.dtype))
    elif scale == "weightS":
        size = jnp.mean(jnp.sqrt(jnp.linalg.svd(w, compute_uv=False)[:rank] / s))
    else:
        size = 1 / s if scale == "gd" else jnp.ones((), w.dtype)
    a, b = size * V[:, of_a], size * U[:, of_b].T
    if norm_clip:
        rho = jnp.max(jnp.abs(w)) / jnp.max(jnp.abs(s * _matmul(a, b)))
        a, b = (x * jnp.sqrt(jnp.minimum(rho, 1)) for x in (a, b))
    a, b = (x.astype(weight.dtype) for x in (a, b))
    # Of the factors as they are kept, so that the sum is the weight again up to one rounding.
    frozen = w - s * _matmul(a.astype(w.dtype), b.astype(w.dtype))
    return a, b, frozen.astype(weight.dtype)


register(
    lora_ga_init,
    form="layer",
    paper=PAPER,
    example={
        "weight": jax.ShapeDtypeStruct((8, 4), "float32"),
        "gradient": jax.ShapeDtypeStruct((8, 4), "float32"),
        "rank": 2,
        "alpha": 4.0,
    },
    notes="an initialiser: called once, before training",
)
