"""What the sources of several gradients share: the losses as one vector, and the gradients of its entries."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.engine.lazy_gradients import LazyGradients, at_most
from gradkit.gradients.replicas import mean_over, own_copy


def vector(method: str, value: Any) -> jax.Array:
    """What a loss returned, as a vector of losses, one per task: a vector, or a list of scalars.

    Raises:
      ValueError: anything else; a scalar too, as a forgotten stack would train the sum of the losses as one task.
    """
    losses = jnp.stack([jnp.asarray(x) for x in value]) if isinstance(value, list) and value else value
    shape = getattr(losses, "shape", None)
    if shape is not None and len(shape) == 1 and shape[0] > 0:
        return losses
    if shape == () or np.isscalar(losses):
        found, alone = "a scalar", ", or leave the aggregator out, where there is one loss"
    else:
        found = f"an array of shape {shape}" if shape is not None else f"a {type(value).__name__}"
        alone = ", with has_aux=True where the second is an aux" if isinstance(value, tuple) else ""
    raise ValueError(
        f"{method}: loss_fn must return a vector of losses, one per task, or a list of scalars, got {found}; write "
        f"jnp.stack([first, second]){alone}"
    )


def of_vector(losses: jax.Array, pullback: Callable[[jax.Array], Any], like: Any, chunk: int, axis: Any) -> Any:
    """The gradients of the entries of a vector, from the transpose of its derivative."""
    m = losses.shape[0]
    c = at_most(chunk, m)

    def gradient(cotangent: jax.Array) -> Any:
        return mean_over(pullback(own_copy(cotangent, axis)), axis)

    def rows(i: Any) -> Any:
        if c == 1:
            return jax.tree.map(lambda g: g[None], gradient(jax.nn.one_hot(i, m, dtype=losses.dtype)))
        numbers = i + (m // c) * jnp.arange(c, dtype=jnp.int32)
        return jax.vmap(gradient)(jax.nn.one_hot(numbers, m, dtype=losses.dtype))

    return LazyGradients(losses, like, c, rows, lambda weights: gradient(weights.astype(losses.dtype)))
