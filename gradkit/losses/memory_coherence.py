"""A penalty for a memory that changes its direction from one batch to the next."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.arrays import reals
from gradkit.types import Scalar

PAPER = Paper("PRES: Toward Scalable Memory-Based Dynamic Graph Neural Networks", "Su, Zou, Wu", 2024, "2402.04284")


def memory_coherence(previous: Scalar, memory: Any) -> jax.Array:
    """The memory-coherence penalty: how much the vectors of a memory have changed direction, on average.

        penalty = the mean over all vectors i of 1 - <s_i, s'_i> / (|s_i| |s'_i|)

    s_i are the vectors before a batch and s'_i those after it. It is in [0, 2], and 0 where none does. Added
    to the loss with a weight of about 0.1 (official code), it is trained with the corrected memory of
    `gk.predict_correct`.

    Args:
      previous: the memory before the batch, floating point: (..., d), whose last axis is the vectors'. No gradient
        flows into it.
      memory: the memory after the batch, of the same shape.

    Returns:
      A scalar in float32 or wider. A vector of 0, as the memory of a node that was never seen, counts as unturned.
      Collectives: one sum where vectors are sharded.

    Raises:
      ValueError: arrays of different shapes, without an axis, or not floating point.

    Example:
      >>> previous = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> float(memory_coherence(previous, jnp.array([[3.0, 0.0], [1.0, 0.0]])))  # the second by a right angle
      0.5

    Reference: Su, Zou, Wu. PRES: Toward Scalable Memory-Based Dynamic Graph Neural Networks. 2024, arXiv 2402.04284.
    Departures from the code: it takes cosines over the nodes rather than over the features, after both memories were
    scaled to [-1, 1] in place, and stops the gradient of the penalty, which then has no effect.
    """
    checks.arrays(previous=previous, memory=memory)
    before, after = (reals("memory_coherence", *named) for named in (("previous", previous), ("memory", memory)))
    if before.shape != after.shape or not before.ndim:
        raise ValueError(
            "memory_coherence: previous and memory must have one shape (..., d), got "
            f"{before.shape} and {after.shape}; write the same nodes in both"
        )
    before = jax.lax.stop_gradient(before)
    squares = [jnp.sum(jnp.square(x), axis=-1) for x in (before, after)]
    some = (squares[0] > 0) & (squares[1] > 0)
    roots = [jnp.sqrt(jnp.where(some, square, jnp.ones_like(square))) for square in squares]
    cosine = jnp.sum(before * after, axis=-1) / roots[0] / roots[1]
    return jnp.mean(jnp.where(some, 1 - cosine, jnp.zeros_like(cosine)))


EXAMPLE = {"previous": jax.ShapeDtypeStruct((3, 4), "float32"), "memory": jax.ShapeDtypeStruct((3, 4), "float32")}
register(memory_coherence, form="layer", paper=PAPER, example=EXAMPLE)
