"""What layers agree on: which axes of a weight make up one output unit, what an argument must be, wide arithmetic."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from gradkit import checks
from gradkit.engine.core import wide_dtype

Axis = int | Sequence[int] | None


def floating(name: str, x: Any, rank: int | None = None) -> jax.Array:
    """An argument as an array of floating point numbers.

    >>> floating("x", jnp.zeros(3), rank=2)
    Traceback (most recent call last):
    ValueError: x must be floating point with 2 axes, got float32 of shape (3,)
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating) or (rank is not None and x.ndim != rank):
        axes = "" if rank is None else f" with {rank} axes"
        raise ValueError(f"{name} must be floating point{axes}, got {x.dtype} of shape {x.shape}")
    return x


def wide(x: jax.Array) -> jax.Array:
    """In float32, or its own dtype where that is wider."""
    return x.astype(wide_dtype(x.dtype))


def unit_axes(w: jax.Array, axis: Axis) -> tuple[int, ...]:
    """The axes that one output unit of a weight spans: those given, else all but the last.

    >>> unit_axes(jnp.zeros((3, 3, 8, 16)), None), unit_axes(jnp.zeros((4, 2)), -2)
    ((0, 1, 2), (0,))
    """
    if axis is None:
        return tuple(range(w.ndim - 1)) if w.ndim > 1 else tuple(range(w.ndim))
    given = (axis,) if isinstance(axis, int) else tuple(axis)
    for a in given:
        checks.integer("axis", a, -w.ndim)
    own = tuple(sorted(a % max(w.ndim, 1) for a in given))
    if any(a >= w.ndim for a in given) or len(set(own)) != len(own):
        raise ValueError(f"axis must name axes of a weight of shape {w.shape}, each once, got {axis!r}")
    return own


def channels(name: str, x: Any, like: jax.Array) -> jax.Array:
    """A vector over the last axis of `like`, ready to be broadcast against it, in its dtype.

    >>> channels("scale", jnp.ones(3), jnp.zeros((2, 5, 3))).shape
    (1, 1, 3)
    """
    x = floating(name, x)
    if x.shape != like.shape[-1:]:
        raise ValueError(f"{name} must have shape {like.shape[-1:]}, one number per channel, got {x.shape}")
    return x.astype(like.dtype).reshape((1,) * (like.ndim - 1) + x.shape)


def readable(x: Any) -> bool:
    """Whether the values of an array can be looked at now."""
    return not isinstance(x, Tracer)
