"""The gain of a sublayer: the largest singular value of its matrix."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, wide_dtype


def _unit(v: jax.Array) -> jax.Array:
    return divide(v, jnp.linalg.norm(v, axis=-1, keepdims=True) + jnp.zeros_like(v))


def sublayer_gain(w: Any, *, steps: int = 50) -> jax.Array:
    """Measures the largest singular value of matrices.

    Equations:

        v <- W^T W v / |W^T W v|        `steps` times: power iteration
        gain = |W v|

    Args:
      w: real, shape (..., rows, columns); leading axes enumerate matrices, such as layers of a stack.
      steps: steps of the power iteration, >= 1. Default 50; the relative error falls as (second / largest)^(4 steps).

    Returns:
      One number per matrix, shape (...), in float32 or wider; 0 for a matrix of zeros, and above the exact value only
      by rounding errors.

    Raises:
      ValueError: fewer than two axes, numbers that are not real and floating point, no step.

    Example:
      >>> print(sublayer_gain(jnp.array([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])).round(4))
      3.0

    Reference: Fan et al. Robust Layerwise Scaling Rules by Proper Weight Decay Tuning. 2025, arXiv 2510.15262. The
    first vector is random, from a fixed key.
    """
    checks.arrays(w=w)
    checks.integer("steps", steps, 1)
    w = jnp.asarray(w)
    if w.ndim < 2 or not jnp.issubdtype(w.dtype, jnp.floating):
        raise ValueError(f"w must be floating point of two axes or more, got {w.dtype} of shape {w.shape}")
    w = w.astype(wide_dtype(w.dtype))
    # The square of a small matrix may be 0 in float32.
    size = jnp.max(jnp.abs(w), axis=(-2, -1), keepdims=True, initial=0)
    w = divide(w, size + jnp.zeros_like(w))
    start = np.random.default_rng(0).standard_normal(w.shape[-1])
    start = jnp.broadcast_to(jnp.asarray(start, w.dtype), (*w.shape[:-2], w.shape[-1]))

    def step(_: Any, v: jax.Array) -> jax.Array:
        return _unit(jnp.einsum("...ij,...i->...j", w, jnp.einsum("...ij,...j->...i", w, v)))

    v = jax.lax.fori_loop(0, steps, step, _unit(start))
    return jnp.linalg.norm(jnp.einsum("...ij,...j->...i", w, v), axis=-1) * size[..., 0, 0]


register(
    sublayer_gain,
    form="function",
    paper=Paper("Robust Layerwise Scaling Rules by Proper Weight Decay Tuning", "Fan et al.", 2025, "2510.15262"),
    example={"w": ((3.0, 0.0), (0.0, 1.0))},
)
