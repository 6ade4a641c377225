"""ReinMax and straight-through: gradients through a sample of a categorical distribution."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar
from gradkit.engine.keys import as_key
from gradkit.layers.axes import floating, wide
from gradkit.types import Key, Scalar

PAPER = Paper("Bridging Discrete and Backpropagation: Straight-Through and Beyond", "Liu et al.", 2023, "2304.08612")


def _centred(c: jax.Array, p: jax.Array) -> jax.Array:
    """The cotangent of logits from that of their softmax p: p c - p <p, c>."""
    weighted = c * p
    return weighted - p * jnp.sum(weighted, axis=-1, keepdims=True)


@jax.custom_vjp
def of_sample(logits: jax.Array, sample: jax.Array, tau: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sample, softmax(logits)) with the gradient of ReinMax in the logits, for a one-hot sample that was drawn."""
    del tau
    return sample, jax.nn.softmax(logits)


def _forward(logits: jax.Array, sample: jax.Array, tau: jax.Array) -> tuple[Any, Any]:
    return of_sample(logits, sample, tau), (logits, sample, tau)


def _backward(kept: Any, cotangents: Any) -> tuple[Any, None, None]:
    (logits, sample, tau), (of_one_hot, of_probs) = kept, cotangents
    q = (jax.nn.softmax(logits / tau) + sample) / 2
    g = _centred(2 * of_one_hot, q) + _centred(of_probs - of_one_hot / 2, jax.nn.softmax(logits))
    return g - jnp.mean(g, axis=-1, keepdims=True), None, None


of_sample.defvjp(_forward, _backward)


def _drawn(key: Any, logits: jax.Array) -> jax.Array:
    classes = jax.random.categorical(as_key(key), logits)
    return jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)


def _classes(logits: Any) -> jax.Array:
    logits = floating("logits", logits)
    if not logits.ndim:
        raise ValueError("logits must have an axis of classes, got a scalar; write logits[None] for a single class")
    return logits


def reinmax(key: Key, logits: Any, tau: Scalar = 1.0) -> tuple[jax.Array, jax.Array]:
    """A sample of a categorical distribution, and a gradient through it that is right to second order.

        p = softmax(logits),    D ~ Categorical(p), one-hot
        backward, of cotangents c of D and h of p, with q = (softmax(logits / tau) + D) / 2:
        u = 2 c q - q <2 c, q>,    v = (h - c / 2) p - p <h - c / 2, p>,    dlogits = u + v - mean(u + v)

    With tau = 1 the mean of dlogits over the samples is the exact gradient of E f(D) for every quadratic f; plain
    straight-through is exact for linear f alone.

    Args:
      key: a typed key or an integer.
      logits: floating point, classes along the last axis.
      tau: temperature of the backward pass, >= 1: the forward pass has none, and there is no factor 1 / tau. Default 1.

    Returns:
      (D, p), arrays like `logits`. The gradient sums to 0 over the classes. Reverse mode only.

    Raises:
      ValueError: `tau` below 1; logits that are not floating point, or a scalar.

    Example:
      >>> sample, p = reinmax(0, jnp.zeros(4))
      >>> float(jnp.sum(sample)), p.tolist()
      (1.0, [0.25, 0.25, 0.25, 0.25])

    Reference: Liu et al. Bridging Discrete and Backpropagation: Straight-Through and Beyond. 2023, arXiv 2304.08612.
    """
    checks.arrays(logits=logits)
    checks.real("tau", tau, "[1, inf)")
    logits = _classes(logits)
    x = wide(logits)
    sample, p = of_sample(x, _drawn(key, x), jnp.asarray(scalar(tau, x), x.dtype))
    return sample.astype(logits.dtype), p.astype(logits.dtype)


def straight_through_categorical(key: Key, logits: Any) -> tuple[jax.Array, jax.Array]:
    """A sample of a categorical distribution, whose gradient is that of its probabilities.

        p = softmax(logits),    D ~ Categorical(p), one-hot,    dD := dp:    dlogits = p c - p <p, c>

    Args:
      key: a typed key or an integer.
      logits: floating point, classes along the last axis.

    Returns:
      (D, p), arrays like `logits`.

    Raises:
      ValueError: logits that are not floating point, or a scalar.

    Example:
      >>> import jax
      >>> f = lambda x: straight_through_categorical(0, x)[0] @ jnp.array([1.0, 3.0])
      >>> jax.grad(f)(jnp.zeros(2)).tolist()
      [-0.5, 0.5]

    Reference: Bengio, Leonard, Courville 2013, arXiv 1308.3432; as the baseline of Liu et al. Bridging Discrete and
    Backpropagation: Straight-Through and Beyond. 2023, arXiv 2304.08612.
    """
    checks.arrays(logits=logits)
    logits = _classes(logits)
    x = wide(logits)
    p = jax.nn.softmax(x)
    sample = _drawn(key, x) + (p - jax.lax.stop_gradient(p))
    return sample.astype(logits.dtype), p.astype(logits.dtype)


EXAMPLE = {"key": 0, "logits": jax.ShapeDtypeStruct((8, 4), "float32")}
register(reinmax, form="layer", paper=PAPER, golden=("estimators/reinmax",), example=EXAMPLE)
register(straight_through_categorical, form="layer", paper=PAPER, example=EXAMPLE)
