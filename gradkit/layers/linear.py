"""What linear layers with a backward pass of their own share."""

from typing import Any

import jax

from gradkit.layers.axes import floating


def check_linear(x: Any, kernel: Any) -> tuple[jax.Array, jax.Array]:
    """Inputs (..., in) and a kernel (in, out), as arrays that fit."""
    x, kernel = floating("x", x), floating("kernel", kernel, 2)
    if x.ndim < 1 or x.shape[-1] != kernel.shape[0]:
        raise ValueError(f"kernel must have shape (in, out) with in the last axis of x, got {kernel.shape}, {x.shape}")
    return x, kernel


def with_bias(y: jax.Array, bias: Any) -> jax.Array:
    """y + bias over the last axis; y where there is no bias."""
    if bias is None:
        return y
    bias = floating("bias", bias)
    if bias.shape != y.shape[-1:]:
        raise ValueError(f"bias must have shape {y.shape[-1:]}, got {bias.shape}")
    return y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
