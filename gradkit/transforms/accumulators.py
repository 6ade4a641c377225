"""The pieces Adam-like rules are put together from: an accumulator, and what is divided by its root.

A method of this family replaces one of them: the running mean by a maximum, a sum, a mean of all steps, or the place
where eps stands.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit.transforms.core import divide, scalar


def ema(m: jax.Array, x: jax.Array, decay: Any) -> jax.Array:
    """decay m + (1 - decay) x: computed as x is, kept as m is.

    >>> ema(jnp.array(1.0), jnp.array(3.0), 0.5).item()
    2.0
    """
    b = scalar(decay, x)
    return (b * m.astype(x.dtype) + (1 - b) * x).astype(m.dtype)


def root(v: jax.Array, eps: Any, eps_root: Any = 0.0) -> jax.Array:
    """sqrt(v + eps_root) + eps.

    >>> root(jnp.array(9.0), 1.0).item()
    4.0
    """
    return jnp.sqrt(v + scalar(eps_root, v)) + scalar(eps, v)


def over(x: jax.Array, denominator: jax.Array) -> jax.Array:
    """x / denominator in the dtype of x, complex or not; 0 where the denominator is 0.

    >>> over(jnp.array([1.0, 0.0]), jnp.array([4.0, 0.0])).tolist()
    [0.25, 0.0]
    """
    return divide(x, denominator.astype(x.dtype))


def inside_or_outside(eps: Any, eps_in_sqrt: bool) -> tuple[Any, Any]:
    """(eps, eps_root) for `root`: a method with one eps says on which side of the root it stands."""
    return (0.0, eps) if eps_in_sqrt else (eps, 0.0)
