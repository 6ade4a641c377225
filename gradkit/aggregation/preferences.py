"""Numbers per task that a user gives, such as preferences: checked where a method is built, and where m is known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gradkit.engine.core import real_dtype, wide_dtype
from gradkit.types import DTypeLike, PyTree


def check_vector(name: str, value: Any, *, positive: bool = False) -> None:
    """Raises where an argument is no vector of finite numbers; None and traced values pass.

    >>> check_vector("pref_vector", 1.0)
    Traceback (most recent call last):
    ValueError: pref_vector must be a vector, one number per gradient, got 1.0
    """
    if value is None or isinstance(value, Tracer):
        return
    values = np.asarray(value)
    if values.ndim != 1:
        raise ValueError(f"{name} must be a vector, one number per gradient, got {value!r}")
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite numbers, got {value!r}")
    if positive and not ((values >= 0).all() and values.sum() > 0):
        raise ValueError(f"{name} must be numbers >= 0 that are not all 0, got {value!r}")


def vector_of(method: str, name: str, value: Any, m: int, dtype: DTypeLike, default: float | None = None) -> jax.Array:
    """The numbers of m tasks; by default 1 / m each, or `default`.

    >>> vector_of("upgrad", "pref_vector", None, 2, float).tolist()
    [0.5, 0.5]
    """
    if value is None:
        return jnp.full((m,), 1 / m if default is None else default, dtype)
    found = jnp.asarray(value, dtype)
    if found.shape != (m,):
        raise ValueError(f"{method}: {name} has shape {found.shape}, and {m} gradients came; give one number for each")
    return found


def dtype_of(params: PyTree) -> Any:
    """The dtype of what is kept per task: that of the Gramian, float32 or as wide as the widest parameter."""
    dtypes = {real_dtype(wide_dtype(jnp.result_type(x))) for x in jax.tree.leaves(params)}
    return max(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.dtype(jnp.float32))


def check_count(method: str, num_tasks: int, m: int) -> None:
    """Raises where another number of gradients comes than the state is for."""
    if m != num_tasks:
        raise ValueError(f"{method}: num_tasks is {num_tasks}, and {m} gradients came; write num_tasks={m}")
