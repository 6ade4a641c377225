"""Linear layers with weights of -1, 0 and 1 (BitNet b1.58), trained through their rounding."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.layers.axes import floating, wide
from gradkit.layers.linear import check_linear, with_bias
from gradkit.types import Scalar

PAPER = Paper(
    "BitNet b1.58 Reloaded: State-of-the-art Performance Also on Smaller Networks",
    "Nielsen, Schneider-Kamp",
    2024,
    "2407.09527",
)
MEASURES = ("median", "mean")


def _through(x: jax.Array, rounded: jax.Array, blend: Any) -> jax.Array:
    """(1 - blend) x + blend rounded, with the gradient of x."""
    share = jnp.asarray(blend).astype(x.dtype)
    value = jax.lax.stop_gradient((1 - share) * x + share * rounded)
    return value + (x - jax.lax.stop_gradient(x))


def _quantize(w: jax.Array, measure: str, eps: Any, blend: Any, batch_axes: int) -> tuple[jax.Array, jax.Array]:
    """Codes, and the scale with as many axes as w."""
    size = jax.lax.stop_gradient(jnp.abs(w)).reshape(*w.shape[:batch_axes], -1)
    middle = (size.shape[-1] - 1) // 2
    typical = jnp.mean(size, axis=-1) if measure == "mean" else jnp.sort(size, axis=-1)[..., middle]
    scale = jnp.maximum(typical, jnp.asarray(eps).astype(w.dtype))
    u = w / scale.reshape(*scale.shape, *[1] * (w.ndim - batch_axes))
    return _through(u, jnp.clip(jnp.round(u), -1, 1), blend), scale


def _check(measure: str, eps: Any, straight_through: Any) -> None:
    checks.choice("measure", measure, MEASURES)
    checks.real("eps", eps, "(0, inf)")
    checks.real("straight_through", straight_through, "[0, 1]")


def ternary_quantize(
    w: Any, *, measure: str = "median", eps: Scalar = 1e-5, straight_through: Scalar = 1.0, batch_axes: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Weights as codes -1, 0 and 1 times one scale per matrix, with the gradient of the weights themselves.

        scale = max(measure(|w|), eps)                     over the whole matrix; no gradient
        u = w / scale,    codes = clip(round(u), -1, 1)    a half is rounded to the even number, 0
        w_q = scale (u + lambda sg(codes - u))             sg: no gradient; lambda = straight_through

    The gradient of w is exactly the one at w_q, of every entry: nothing is masked where codes are clipped. lambda < 1
    is between the weights and their codes, to warm the quantization up.

    Args:
      w: floating point, (..., in, out): the master weights, which are trained.
      measure: "median" of |w|, the lower one of an even number (paper), or "mean". Default "median".
      eps: smallest scale, > 0. Default 1e-5 (official code).
      straight_through: lambda in [0, 1]; may be traced. Default 1.
      batch_axes: axes in front that enumerate matrices, such as layers of a stack, >= 0. Default 0.

    Returns:
      (codes, scale), in float32 or wider: u + lambda (codes - u), of w's shape, and (the batch axes). Their product
      is w_q.

    Raises:
      ValueError: an argument outside its range; weights that are not floating point, or of fewer axes.

    Example:
      >>> codes, scale = ternary_quantize(jnp.array([[0.5, -2.0], [0.1, 1.0]]))
      >>> codes.tolist(), float(scale)  # the lower median of 0.1, 0.5, 1 and 2
      ([[1.0, -1.0], [0.0, 1.0]], 0.5)

    Reference: Nielsen, Schneider-Kamp. BitNet b1.58 Reloaded: State-of-the-art Performance Also on Smaller Networks.
    2024, arXiv 2407.09527.
    """
    checks.arrays(w=w)
    _check(measure, eps, straight_through)
    batch_axes = checks.integer("batch_axes", batch_axes)
    w = floating("w", w)
    if w.ndim <= batch_axes or not w.size:
        raise ValueError(f"w must have more than batch_axes={batch_axes} axes and not be empty, got shape {w.shape}")
    return _quantize(wide(w), measure, eps, straight_through, batch_axes)


def ternary_linear(
    x: Any,
    kernel: Any,
    bias: Any = None,
    *,
    measure: str = "median",
    eps: Scalar = 1e-5,
    norm_eps: Scalar = 1e-5,
    straight_through: Scalar = 1.0,
    activation_bits: int = 8,
) -> jax.Array:
    """A linear layer of ternary weights and integer activations, with float master weights.

        h = (x - mean(x)) / sqrt(var(x) + norm_eps)         per row; no parameters
        s = 2^(bits-1) / max(max|h|, eps)                   per row; no gradient
        q = clip(round(s h), -2^(bits-1), 2^(bits-1) - 1)   with the gradient of s h
        y = (q codes) scale / s + bias                      codes and scale of the kernel: `ternary_quantize`

    Args:
      x: inputs, (..., in).
      kernel: master weights, (in, out).
      bias: (out,). Default None: none. Added behind the scales.
      measure: see `ternary_quantize`. Default "median" (paper).
      eps: smallest measure of weights and activations, > 0. Default 1e-5 (official code).
      norm_eps: of the normalization, > 0. Default 1e-5 (official code).
      straight_through: lambda in [0, 1], of weights and activations. Default 1.
      activation_bits: from 2 to 16. Default 8 (paper).

    Returns:
      Outputs (..., out), in the dtype of x. No state. The largest positive entry of a row is clipped, by one step.

    Raises:
      ValueError: an argument outside its range; shapes that do not fit.

    Example:
      >>> x, w = jnp.array([[1.0, -1.0]]), jnp.array([[2.0], [-2.0]])
      >>> print(ternary_linear(x, w).round(2))  # 2 (1 + 1), but for the step that is clipped
      [[3.98]]

    Reference: Nielsen, Schneider-Kamp. BitNet b1.58 Reloaded: State-of-the-art Performance Also on Smaller Networks.
    2024, arXiv 2407.09527. The public code adds the bias before it divides by the scales, so that the bias shrinks
    with the weights and activations; here it is added behind.
    """
    checks.arrays(x=x, kernel=kernel, bias=bias)
    _check(measure, eps, straight_through)
    checks.real("norm_eps", norm_eps, "(0, inf)")
    bits = checks.integer("activation_bits", activation_bits, 2, maximum=16)
    x, kernel = check_linear(x, kernel)
    codes, scale = _quantize(wide(kernel), measure, eps, straight_through, 0)
    h = wide(x)
    small = jnp.asarray(eps).astype(h.dtype)
    h = h - jnp.mean(h, axis=-1, keepdims=True)
    h = h * jax.lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + jnp.asarray(norm_eps).astype(h.dtype))
    top = 2 ** (bits - 1)
    s = top / jnp.maximum(jax.lax.stop_gradient(jnp.max(jnp.abs(h), axis=-1, keepdims=True)), small)
    q = _through(s * h, jnp.clip(jnp.round(s * h), -top, top - 1), straight_through)
    dtype = jnp.promote_types(q.dtype, codes.dtype)
    y = q.astype(dtype) @ codes.astype(dtype) * scale.astype(dtype) / s.astype(dtype)
    return with_bias(y.astype(x.dtype), bias)


KERNEL = jax.ShapeDtypeStruct((8, 4), "float32")
register(ternary_quantize, form="layer", paper=PAPER, golden=("second_shelf/ternary_linear",), example={"w": KERNEL})
register(
    ternary_linear,
    form="layer",
    paper=PAPER,
    golden=("second_shelf/ternary_linear",),
    example={"x": jax.ShapeDtypeStruct((16, 8), "float32"), "kernel": KERNEL},
)
