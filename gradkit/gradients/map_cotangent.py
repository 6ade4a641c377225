"""Functions that are the identity forward and change the cotangent backward, and the clipping of pixels as one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import abs_sq, wide_dtype
from gradkit.types import Scalar

PAPER = Paper(
    "Enhancing High-Resolution 3D Generation through Pixel-wise Gradient Clipping", "Pan et al.", 2023, "2310.12474"
)


def map_cotangent(f: Callable[..., Any]) -> Callable[..., jax.Array]:
    """A function that returns its argument, and that changes the gradient that flows back through it.

    Equations:

        y = x,    dL/dx = f(dL/dy)

    Args:
      f: (cotangent, *args) -> cotangent of the same shape and dtype.

    Returns:
      hook(x, *args) -> x, for an array x. What `f` depends on besides the cotangent should be passed as `args`, which
      may be traced and get no gradient. Reverse mode only: `jax.jvp` through it raises.

    Raises:
      ValueError: `f` not callable; in the backward pass, a cotangent of another shape or dtype.

    Example:
      >>> halve = map_cotangent(lambda c: c / 2)
      >>> float(halve(3.0)), float(jax.grad(lambda x: halve(x) ** 2)(3.0))
      (3.0, 3.0)

    Reference: the primitive behind Pan et al. Enhancing High-Resolution 3D Generation through Pixel-wise Gradient
    Clipping. 2023, arXiv 2310.12474.
    """
    checks.function("f", f)

    @jax.custom_vjp
    def hook(x: Any, *args: Any) -> jax.Array:
        del args
        return jnp.asarray(x)

    def forward(x: Any, *args: Any) -> tuple[jax.Array, Any]:
        return jnp.asarray(x), args

    def backward(args: Any, c: jax.Array) -> tuple[Any, ...]:
        new = f(c, *args)
        if (jnp.shape(new), jnp.result_type(new)) != (c.shape, c.dtype):
            got = f"{jnp.result_type(new)} of shape {jnp.shape(new)}"
            raise ValueError(f"map_cotangent: f must return {c.dtype} of shape {c.shape}, got {got}")
        return (new, *(None for _ in args))

    hook.defvjp(forward, backward)
    return hook


def clip_pixels(c: Any, threshold: Scalar = 0.1, *, channel_axis: int = -1, norm: str = "l2") -> jax.Array:
    """Scales every pixel of an image down to a largest norm over its channels; `clip_pixelwise` does so backward.

    Equations: f of `clip_pixelwise`.

    Args:
      c: floating point, with an axis of channels; usually a gradient, or a cotangent.
      threshold: largest norm of a pixel, > 0. Default 0.1 (official code). With a loss that is multiplied by a scale,
        multiply it too.
      channel_axis: the axis of channels. Default the last.
      norm: "l2" or "linf" (official code). Default "l2".

    Returns:
      An array like `c`; the direction of every pixel is kept.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> print(clip_pixels(jnp.array([[3.0, 4.0], [0.0, 0.5]]), 2.5).round(4))
      [[1.5 2. ]
       [0.  0.5]]

    Reference: Pan et al. 2023, arXiv 2310.12474.
    """
    checks.arrays(c=c)
    checks.real("threshold", threshold, "(0, inf]")
    checks.choice("norm", norm, ("l2", "linf"))
    c = jnp.asarray(c)
    checks.integer("channel_axis", channel_axis, -c.ndim)
    if not jnp.issubdtype(c.dtype, jnp.inexact) or channel_axis >= c.ndim:
        raise ValueError(f"c must be floating point and have axis {channel_axis}, got {c.dtype} of shape {c.shape}")
    wide = c.astype(wide_dtype(c.dtype))
    largest = jnp.max(jnp.abs(wide), axis=channel_axis, keepdims=True)
    length = largest
    if norm == "l2":
        # Scaled by the largest channel first: squares of small gradients would be 0.
        unit = wide / jnp.where(largest > 0, largest, jnp.ones_like(largest)).astype(wide.dtype)
        length = largest * jnp.sqrt(jnp.sum(abs_sq(unit), axis=channel_axis, keepdims=True))
    limit = jnp.asarray(threshold).astype(length.dtype)
    long = length > limit
    factor = jnp.where(long, limit / jnp.where(long, length, jnp.ones_like(length)), jnp.ones_like(length))
    return (wide * factor.astype(wide.dtype)).astype(c.dtype)


def clip_pixelwise(x: Any, threshold: Scalar = 0.1, *, channel_axis: int = -1, norm: str = "l2") -> jax.Array:
    """Returns an image as it is, and clips the gradient that flows back to each of its pixels.

    Equations, for the channels c of a pixel of the cotangent:

        y = x,    dL/dx = f(dL/dy)
        f(c) = c min(1, threshold / |c|)            c where its norm is 0
        |c| = sqrt(sum of c_i^2)                    "l2"
        |c| = max |c_i|                             "linf"

    It is for an image with a loss of its own, such as one from a renderer that a diffusion model scores:
    `loss(clip_pixelwise(render(params)))`.

    Args:
      x: the image or images, floating point, with an axis of channels.
      threshold: largest norm of the gradient of a pixel, > 0; may be traced. Default 0.1 (official code). With a loss
        that is multiplied by a scale, multiply it too.
      channel_axis: the axis of channels. Default the last.
      norm: "l2" or "linf" (official code). Default "l2".

    Returns:
      `x` itself. Reverse mode only.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> image = jnp.zeros((2, 3))  # two pixels of three channels
      >>> jax.grad(lambda x: jnp.sum(clip_pixelwise(x, 0.5, norm="linf")[0] * 4))(image).tolist()
      [[0.5, 0.5, 0.5], [0.0, 0.0, 0.0]]

    Reference: Pan et al. Enhancing High-Resolution 3D Generation through Pixel-wise Gradient Clipping. 2023, arXiv
    2310.12474. The official code takes the smallest factor over the channels, that of the largest channel: "linf".
    """
    checks.arrays(x=x)
    checks.axes(channel_axis=channel_axis)
    checks.real("threshold", threshold, "(0, inf]")
    checks.choice("norm", norm, ("l2", "linf"))
    x = jnp.asarray(x)
    checks.integer("channel_axis", channel_axis, -x.ndim)
    if not jnp.issubdtype(x.dtype, jnp.inexact) or channel_axis >= x.ndim:
        raise ValueError(f"x must be floating point and have axis {channel_axis}, got {x.dtype} of shape {x.shape}")
    return map_cotangent(lambda c, limit: clip_pixels(c, limit, channel_axis=channel_axis, norm=norm))(x, threshold)


register(map_cotangent, form="layer", paper=PAPER, example={"f": lambda c: c / 2})
register(clip_pixelwise, form="layer", paper=PAPER)
