"""Time steps of a diffusion from a part of all of them."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.keys import as_key

PAPER = Paper(
    "Efficient Personalization of Quantized Diffusion Model without Backpropagation", "Seo et al.", 2025, "2503.14868"
)


def partial_uniform(low: int = 500, high: int = 900) -> Any:
    """Uniform time steps of an interval, in place of all: early and late ones teach a token little.

        t ~ uniform{low, ..., high - 1}

    Args:
      low: first time step, >= 0. Default 500 (paper, of 1000).
      high: one behind the last, > low. Default 900 (paper).

    Returns:
      draw(key, shape=()) -> int32 time steps. No state, no collective.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> int(partial_uniform(3, 4)(0))
      3

    Reference: Seo et al. Efficient Personalization of Quantized Diffusion Model without Backpropagation. 2025, arXiv
    2503.14868 (ZOODiP).
    """
    low = checks.integer("low", low, 0)
    high = checks.integer("high", high, low + 1)

    def draw(key: Any, shape: tuple[int, ...] = ()) -> jax.Array:
        return jax.random.randint(as_key(key), shape, low, high, jnp.int32)

    return draw


register(partial_uniform, form="function", paper=PAPER)
