"""Random directions that follow from a key alone, and what a loss does along them.

    z = direction(key, params)                                     tree like the parameters, normal or of signs
    c = (L(x + epsilon z) - L(x - epsilon z)) / (2 epsilon)        one number, `directional_difference`

A direction is neither stored nor exchanged: it follows from the key. The numbers depend on the key and on the place of
a leaf in the tree, not on how an array is sharded under `jit`; under `shard_map`, shards of a leaf have their own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit.engine.core import scalar, wide_dtype
from gradkit.engine.sums import own_key
from gradkit.leaves import names

DISTRIBUTIONS = ("normal", "rademacher")


def direction(key: jax.Array, like: Any, distribution: str = "normal") -> Any:
    """One random direction, in float32 or wider.

    >>> direction(jax.random.key(0), {"a": jnp.zeros(2, jnp.bfloat16)})["a"].dtype
    dtype('float32')
    """
    leaves, structure = jax.tree.flatten(like)
    drawn = []
    for i, (name, x) in enumerate(zip(names(like), leaves, strict=True)):
        own = jax.random.fold_in(own_key(key, name, jnp.ndim(x)), i)
        draw = jax.random.normal if distribution == "normal" else jax.random.rademacher
        wide = wide_dtype(jnp.result_type(x))
        # Added to zeros of the leaf, which are sharded as it is.
        drawn.append(jnp.zeros_like(x, wide) + draw(own, jnp.shape(x), wide))
    return structure.unflatten(drawn)


def moved(params: Any, distance: Any, z: Any) -> Any:
    """x + distance z, in the dtypes of the parameters.

    >>> moved(jnp.ones(2), 0.5, jnp.array([1.0, -1.0])).tolist()
    [1.5, 0.5]
    """

    def leaf(x: jax.Array, z: jax.Array) -> jax.Array:
        return (x.astype(z.dtype) + scalar(distance, z) * z).astype(x.dtype)

    return jax.tree.map(leaf, params, z)


def directional_difference(loss: Callable[[Any], Any], params: Any, z: Any, epsilon: Any) -> tuple[Any, Any]:
    """The central difference c along z, and the mean of both losses.

    One after the other, in a loop: as two calls in one program, XLA keeps activations of both at a time.

    >>> c, mean = directional_difference(lambda x: x**2, jnp.array(3.0), jnp.array(1.0), 0.5)
    >>> float(c), float(mean)
    (6.0, 9.25)
    """
    sides = jnp.array([1.0, -1.0])
    above, below = jax.lax.map(lambda side: loss(moved(params, side * scalar(epsilon, side), z)), sides)
    return (above - below) / (2 * scalar(epsilon, above)), (above + below) / 2
