"""ShiftQuant: channels in groups whose scales differ by powers of two, and a normalization without squares."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar
from gradkit.engine.keys import as_key
from gradkit.layers.axes import floating, wide
from gradkit.types import Key, Scalar

PAPER = Paper("Towards Accurate and Efficient Sub-8-Bit Integer Training", "Guo et al.", 2024, "2411.10948")


def shift_codes(g: jax.Array, key: Key, bits: int, axis: int, num_groups: int) -> tuple[Any, Any, Any]:
    """(integers, k of every channel, R): g is about integers times R / 2^k / (2^(bits-1) - 1)."""
    others = tuple(i for i in range(g.ndim) if i != axis % g.ndim)
    r = jnp.max(jnp.abs(g), axis=others, keepdims=True)
    R = jnp.max(r)
    some = r > 0
    # From exponents, so that a power of two is exactly one: R <= 2^e r with the smallest such e is no logarithm.
    k = jnp.floor(jnp.log2(R / jnp.where(some, r, jnp.ones_like(r))))
    k = jnp.where(r * jnp.exp2(k + 1) <= R, k + 1, jnp.where(r * jnp.exp2(k) > R, k - 1, k))
    k = jnp.where(some, jnp.clip(k, 0, num_groups - 1), num_groups - 1)
    top = 2 ** (bits - 1) - 1
    scale = R / jnp.exp2(k) / top
    noise = jax.random.uniform(key, g.shape, g.dtype)
    q = jnp.floor(g / jnp.where(scale > 0, scale, jnp.ones_like(scale)) + noise)
    return jnp.clip(q, -top, top), k, R


def shift_quantize(g: Any, key: Key, *, bits: int = 4, axis: int = -1, num_groups: int = 4) -> jax.Array:
    """A gradient with few bits, whose channels have scales that differ by powers of two.

        r_c = max |g| of channel c,    R = max r_c,    k_c = clip(floor(log2(R / r_c)), 0, num_groups - 1)
        scale_c = R / 2^k_c / (2^(bits-1) - 1),    g = scale_c floor(g / scale_c + u),    u ~ U(0, 1) per entry

    In a matrix product over integers the scale of a channel is a shift to the left, by num_groups - 1 - k_c, and small
    channels are not rounded to 0. Rounding at random has the mean g; the error of an entry is below scale_c.

    Args:
      g: floating point; a cotangent: `gk.gradients.map_cotangent(lambda c, key: shift_quantize(c, key))`.
      key: a typed key or an integer, another one every step.
      bits: of an entry with its sign, from 2 to 16. Default 4.
      axis: of channels, over which the next product sums. Default the last.
      num_groups: of channels, >= 1; 1 is one scale for the tensor. Default 4.

    Returns:
      An array like `g`: the quantized numbers, with their scales.

    Raises:
      ValueError: an argument outside its range; g without the axis.

    Example:
      >>> shift_quantize(jnp.array([[7.0, 0.25]]), 0, num_groups=5).tolist()  # 7 levels of 1, and of 1 / 16
      [[7.0, 0.25]]

    Reference: Guo et al. Towards Accurate and Efficient Sub-8-Bit Integer Training. 2024, arXiv 2411.10948. The paper
    chooses the borders of the groups by the variance of the rounding; here they are powers of two of the maximum.
    """
    checks.arrays(g=g)
    bits = checks.integer("bits", bits, 2, maximum=16)
    num_groups = checks.integer("num_groups", num_groups, 1, maximum=64)
    g = floating("g", g)
    checks.integer("axis", axis, -g.ndim)
    if axis >= g.ndim:
        raise ValueError(f"axis must be one of the {g.ndim} axes of g, got {axis}; write axis=-1 for the last")
    if not g.size:
        return g
    q, k, R = shift_codes(wide(g), as_key(key), bits, axis, num_groups)
    return (q * (R / jnp.exp2(k) / (2 ** (bits - 1) - 1))).astype(g.dtype)


def l1_normalize(x: Any, *, axis: int | tuple[int, ...] = -1, eps: Scalar = 1e-5) -> jax.Array:
    """Normalization by the mean absolute deviation, which needs no squares and no root.

        y = (x - mean(x)) / (mean|x - mean(x)| + eps)

    Args:
      x: floating point.
      axis: over which means are taken: of a batch and space for a batch normalization, of features for a layer
        normalization. Default the last.
      eps: added below, > 0. Default 1e-5.

    Returns:
      An array like `x`; multiply by a scale and add a bias behind it.

    Raises:
      ValueError: an argument outside its range; axes that x has not.

    Example:
      >>> l1_normalize(jnp.array([1.0, 3.0]), eps=1e-9).tolist()
      [-1.0, 1.0]

    Reference: Guo et al. Towards Accurate and Efficient Sub-8-Bit Integer Training. 2024, arXiv 2411.10948. The
    default of eps is ours.
    """
    checks.arrays(x=x)
    checks.axes(axis=axis)
    checks.real("eps", eps, "(0, inf)")
    x = floating("x", x)
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if any(not -x.ndim <= a < x.ndim for a in axes):
        raise ValueError(f"axis must be axes of x, which has {x.ndim}, got {axis!r}; write axis=-1 for the last")
    w = wide(x)
    apart = w - jnp.mean(w, axis=axes, keepdims=True)
    return (apart / (jnp.mean(jnp.abs(apart), axis=axes, keepdims=True) + scalar(eps, w))).astype(x.dtype)


EXAMPLE = jax.ShapeDtypeStruct((8, 4), "float32")
register(shift_quantize, form="layer", paper=PAPER, example={"g": EXAMPLE, "key": 0})
register(l1_normalize, form="layer", paper=PAPER, example={"x": EXAMPLE})
