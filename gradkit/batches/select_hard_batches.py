"""Hard samples: of n minibatches, those with the largest loss are trained again."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register


def select_hard_batches(losses: Any, fraction: float) -> jax.Array:
    """The minibatches with the largest losses, to be trained again.

    Equations:

        indices = the first k of argsort(-losses),   k = ceil(fraction n)

    Of equal losses the earlier minibatch comes first.

    Args:
      losses: the losses of n >= 1 minibatches, shape (n,), as measured when they were last seen. May be traced. NaN
        counts as the largest.
      fraction: the paper's delta, in (0, 1]: the fraction that is trained again.

    Returns:
      k indices, int32. With fraction 1 all of them, sorted.

    Raises:
      ValueError: losses that are not real numbers of shape (n,), none at all, or a fraction outside its range.

    Example:
      >>> print(select_hard_batches(jnp.array([0.1, 3.0, 2.0, 3.0]), 0.6))
      [1 3 2]

    Reference: Sahayam, Zakkam, Jayaraman. Can we learn better with hard samples? 2023, arXiv 2304.03486. In which pass
    the selected minibatches are trained, and whether their losses are measured again, is up to the loop.
    """
    checks.arrays(losses=losses)
    checks.real("fraction", fraction, "(0, 1]")
    losses = jnp.asarray(losses)
    real = jnp.issubdtype(losses.dtype, jnp.floating) or jnp.issubdtype(losses.dtype, jnp.integer)
    if losses.ndim != 1 or not losses.size or not real:
        raise ValueError(f"losses must be real numbers of shape (n,), got {losses.dtype} of shape {losses.shape}")
    # A number that rounding has put just above an integer counts as that integer: 0.07 * 100 is 7.000000000000001.
    k = math.ceil(float(fraction) * losses.size * (1 - 2**-50))
    return jax.lax.top_k(losses, k)[1]


register(
    select_hard_batches,
    form="function",
    paper=Paper("Can we learn better with hard samples?", "Sahayam, Zakkam, Jayaraman", 2023, "2304.03486"),
    example={"losses": (0.1, 3.0, 2.0), "fraction": 0.5},
)
