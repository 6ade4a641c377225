"""Weights of pairs of noise and data in flow matching, in the place of a transport plan of every batch."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.arrays import reals
from gradkit.types import Scalar

PAPER = Paper("Weighted Conditional Flow Matching", "Calvo-Ordoñez et al.", 2025)


def gibbs_pair_weights(x: Any, y: Any, epsilon: Scalar, *, axis_name: Any = None) -> jax.Array:
    """Weights of independently drawn pairs (noise, data): those that entropic optimal transport would join count more.

        w_i = B exp(-|x_i - y_i|^2 / epsilon) / sum_j exp(-|x_j - y_j|^2 / epsilon),     mean 1 over the B pairs

    Multiply the flow matching loss of pair i by w_i and take the mean over all B. `effective_sample_size(w)` says how
    many pairs are left: a small epsilon in many dimensions leaves one.

    Args:
      x: noise, (B, ...), floating point.
      y: data of the same shape.
      epsilon: > 0, in units of the squared distance over all axes but the first, which grows with their number.
      axis_name: axis of `vmap` or `shard_map` whose members hold parts of the batch: the sum is over all pairs.
        Default None.

    Returns:
      (B,), float32 or wider. Collectives with `axis_name`: two all-reduces of one number.

    Raises:
      ValueError: shapes that differ or have no leading axis; epsilon outside its range.

    Example:
      >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([[0.0], [0.0]])
      >>> print(gibbs_pair_weights(x, y, 1.0).round(3))  # 2 e^0 : 2 e^-1, over 1 + e^-1
      [1.462 0.538]

    Reference: Calvo-Ordoñez et al. Weighted Conditional Flow Matching. 2025. The normalisation to mean 1 is ours; how
    the paper scales epsilon with the dimension could not be verified.
    """
    checks.arrays(x=x, y=y)
    checks.axis_name("axis_name", axis_name)
    checks.real("epsilon", epsilon, "(0, inf]")
    x, y = reals("gibbs_pair_weights", "x", x), reals("gibbs_pair_weights", "y", y)
    if x.ndim < 1 or x.shape != y.shape:
        raise ValueError(f"x and y must have one shape (pairs, ...), got {x.shape} and {y.shape}; pair them first")
    cost = jnp.sum(jnp.square(x - y).reshape(len(x), -1), axis=1)
    logits = -cost / jnp.asarray(epsilon).astype(cost.dtype)
    top = jnp.max(logits)
    pairs = len(x)
    if axis_name is not None:
        top, pairs = jax.lax.pmax(jax.lax.stop_gradient(top), axis_name), pairs * jax.lax.axis_size(axis_name)
    raised = jnp.exp(logits - top)
    total = jnp.sum(raised)
    total = total if axis_name is None else jax.lax.psum(total, axis_name)
    return jax.lax.stop_gradient(pairs * raised / total)


def effective_sample_size(weights: Any) -> jax.Array:
    """How many equal weights have the same variance as these: (sum w)^2 / sum w^2.

    Args:
      weights: >= 0, any shape, not all 0.

    Returns:
      A scalar from 1 to the number of weights, float32 or wider.

    Raises:
      ValueError: no weights, or not floating point.

    Example:
      >>> float(effective_sample_size(jnp.array([1.0, 1.0, 0.0])))
      2.0

    Reference: Calvo-Ordoñez et al. Weighted Conditional Flow Matching. 2025; Kish 1965.
    """
    checks.arrays(weights=weights)
    w = reals("effective_sample_size", "weights", weights)
    return jnp.square(jnp.sum(w)) / jnp.sum(jnp.square(w))


PAIRS = jax.ShapeDtypeStruct((16, 4), "float32")
register(gibbs_pair_weights, form="function", paper=PAPER, example={"x": PAIRS, "y": PAIRS, "epsilon": 1.0})
register(
    effective_sample_size, form="function", paper=PAPER, example={"weights": jax.ShapeDtypeStruct((16,), "float32")}
)
