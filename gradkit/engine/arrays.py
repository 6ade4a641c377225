"""Arguments that are arrays of real numbers, checked and in float32 or wider."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gradkit.engine.core import wide_dtype


def reals(method: str, name: str, x: Any, rank: int | None = None, *, empty: bool = False) -> jax.Array:
    """An argument as an array of float32 or wider.

    >>> reals("gumbel_top_k", "logits", jnp.zeros((2, 2), jnp.bfloat16), 1)
    Traceback (most recent call last):
    ValueError: gumbel_top_k: logits must be floating point with 1 axis, got bfloat16 of shape (2, 2)
    """
    try:
        x = jnp.asarray(x)
    except TypeError as error:
        raise ValueError(f"{method}: {name} must be an array of real numbers, got {x!r}") from error
    axes = "" if rank is None else f" with {rank} {'axis' if rank == 1 else 'axes'}"
    if not jnp.issubdtype(x.dtype, jnp.floating) or (rank is not None and x.ndim != rank):
        raise ValueError(f"{method}: {name} must be floating point{axes}, got {x.dtype} of shape {x.shape}")
    if not x.size and not empty:
        raise ValueError(f"{method}: {name} must not be empty, got shape {x.shape}")
    return x.astype(wide_dtype(x.dtype))


def refuse(method: str, name: str, x: jax.Array, bad: Any, allowed: str) -> None:
    """Raises where a condition that no entry may meet is met, of arrays that can be read now.

    >>> refuse("duration_weights", "durations", jnp.array([1.0, 0.0]), lambda x: x <= 0, "> 0; leave such examples out")
    Traceback (most recent call last):
    ValueError: duration_weights: durations must be > 0; leave such examples out; got 0.0 at entry 1
    """
    if isinstance(x, Tracer):
        return
    values = np.asarray(x)
    found = np.argwhere(bad(values))
    if len(found):
        place = tuple(int(i) for i in found[0])
        where = place[0] if len(place) == 1 else place
        raise ValueError(f"{method}: {name} must be {allowed}; got {values[place]} at entry {where}")
