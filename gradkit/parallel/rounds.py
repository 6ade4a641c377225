"""What strategies share whose rounds have a fixed length: the checks of a step, and which of two programs it is."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.engine.core import as_arrays, widen
from gradkit.engine.matching import check_leaves, check_match
from gradkit.parallel.local_updates import step_to
from gradkit.parallel.replicas import alike, check_own
from gradkit.types import PyTree


def checked(method: str, updates: PyTree, params: PyTree, axis_name: Any) -> tuple[Any, Any]:
    """Gradients and parameters as arrays.

    Raises:
      ValueError: parameters that are missing; trees that differ; leaves that are not floating point; gradients that are
        sums over the replicas.
    """
    if params is None:
        raise ValueError(f"{method} needs params: call update(grads, state, params)")
    check_match(method, updates, params)
    check_leaves(method, updates, complex_leaves=True)
    check_own(method, updates, axis_name)
    return as_arrays(updates), as_arrays(params)


def reached(params: PyTree, updates: PyTree) -> Any:
    """Where a replica is after its own step, in float32 or wider."""
    return jax.tree.map(lambda x, u: x + u.astype(x.dtype), widen(params), updates)


def led(x: Any, params: PyTree, like: Any) -> Any:
    """The updates that lead from the parameters to x."""
    return jax.tree.map(step_to, x, params, like)


def either(sync: Any, ends: jax.Array, meet: Callable[[], Any], apart: Any) -> Any:
    """What a step gives: that of `meet` where the round ends, else `apart`. `sync` is that of `local_updates`."""
    if sync is None:
        sync = ends
    if isinstance(sync, bool | np.bool_):
        return alike(meet(), apart) if sync else apart
    return jax.lax.cond(sync, lambda: alike(meet(), apart), lambda: apart)


def plain(x: Any, params: PyTree) -> Any:
    """Parameters of all replicas in their own dtypes."""
    return alike(jax.tree.map(lambda new, old: new.astype(old.dtype), x, params), params)


def ends_round(count: jax.Array, sync_every: Any) -> jax.Array:
    """Whether the step that makes `count` of them ends a round of a fixed length."""
    return count % jnp.asarray(sync_every, jnp.int32) == 0
