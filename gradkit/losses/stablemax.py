"""StableMax: a softmax that grows linearly, so that the loss of a fitted example does not vanish in rounding."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype

PAPER = Paper("Grokking at the Edge of Numerical Stability", "Prieto et al.", 2025, "2501.04697")


def _log_s(z: jax.Array) -> jax.Array:
    # Two branches in place of sign(z) log(1 + |z|), whose computed derivative at 0 is 0 and not 1. NaN stays NaN.
    rising = z >= 0
    up, down = jnp.where(rising, z, jnp.zeros_like(z)), jnp.where(rising, jnp.zeros_like(z), -z)
    return jnp.log1p(up) - jnp.log1p(down)


def log_stablemax(logits: Any, *, axis: int = -1) -> jax.Array:
    """The logarithm of probabilities that grow linearly in their logits, not exponentially.

    Equations:

        s(z) = z + 1                              z >= 0
        s(z) = 1 / (1 - z)                        z < 0; so log s(z) = sign(z) log(1 + |z|)
        log p_i = log s(z_i) - log sum_j s(z_j)

    Args:
      logits: real numbers of any shape.
      axis: the axis over which probabilities add up to 1. Default the last.

    Returns:
      Log-probabilities of the shape of the logits, in float32 or wider.

    Raises:
      ValueError: logits that are not floating point, or an axis they do not have.

    Example:
      >>> print(jnp.exp(log_stablemax(jnp.array([3.0, 0.0, -1.0]))).round(4))  # as 4 : 1 : 1/2
      [0.7273 0.1818 0.0909]

    Reference: Prieto et al. Grokking at the Edge of Numerical Stability. 2025, arXiv 2501.04697. The official code
    computes in float64.
    """
    checks.arrays(logits=logits)
    z = jnp.asarray(logits)
    checks.integer("axis", axis, -z.ndim)
    if not jnp.issubdtype(z.dtype, jnp.floating) or axis >= z.ndim:
        raise ValueError(f"logits must be floating point and have axis {axis}, got {z.dtype} of shape {z.shape}")
    log_s = _log_s(z.astype(wide_dtype(z.dtype)))
    return log_s - jax.nn.logsumexp(log_s, axis=axis, keepdims=True)


def stablemax_cross_entropy(logits: Any, labels: Any) -> jax.Array:
    """Cross entropy on StableMax, instead of `optax.softmax_cross_entropy_with_integer_labels`.

    Equations, with log p of `log_stablemax`:

        loss = -log p_label

    The gradient of a fitted example falls as 1 / z^2 in its margin z; that of softmax falls as exp(-z), and is rounded
    to 0, where training stops.

    Args:
      logits: real numbers, shape (..., classes).
      labels: integers in [0, classes), shape (...). A label outside gives the loss NaN.

    Returns:
      The loss of every example, shape (...), in float32 or wider; take the mean.

    Raises:
      ValueError: labels that are no integers, or whose shape is not that of the logits without the last axis.

    Example:
      >>> loss = stablemax_cross_entropy(jnp.array([[3.0, 0.0, -1.0]]), jnp.array([0]))
      >>> round(float(loss[0]), 4)  # -log(4 / 5.5)
      0.3185

    Reference: Prieto et al. Grokking at the Edge of Numerical Stability. 2025, arXiv 2501.04697. The official code
    computes in float64, and takes the mean.
    """
    z, labels = jnp.asarray(logits), jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != z.shape[:-1]:
        raise ValueError(
            f"labels must be integers of shape {z.shape[:-1]}, the logits' without the last axis, "
            f"got {labels.dtype} of shape {labels.shape}"
        )
    log_p = log_stablemax(z)
    outside = (labels < 0) | (labels >= z.shape[-1])
    picked = jnp.take_along_axis(log_p, jnp.where(outside, 0, labels)[..., None], axis=-1)[..., 0]
    return jnp.where(outside, jnp.nan, -picked)


register(log_stablemax, form="layer", paper=PAPER)
register(stablemax_cross_entropy, form="layer", paper=PAPER, notes="goes well with `gk.perpgrad`, of the same paper")
