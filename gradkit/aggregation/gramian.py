"""Inner products between stacked gradients, and their combinations.

A stacked gradient is a gradient tree with one leading axis of length m on every leaf: one gradient per task,
example or replica. With <a, b> summed over all leaves:

    G_ij = <g_i, g_j>                 gramian
    w_1 g_1 + ... + w_m g_m           combine

An aggregator whose weights follow from G alone asks sharded gradients for one sum of m^2 numbers; the combination
is local.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gradkit.engine.core import check_leaves, check_match, wide_dtype
from gradkit.leaves import names

HIGHEST = jax.lax.Precision.HIGHEST


def _real(dtype: Any) -> Any:
    return jnp.finfo(wide_dtype(dtype)).dtype


def _everywhere(x: jax.Array) -> NamedSharding | None:
    """On a mesh of explicit axes, where the program has to say it: a small matrix lies on every device."""
    mesh = jax.typeof(x).sharding.mesh
    return NamedSharding(mesh, P(None, None)) if AxisType.Explicit in mesh.axis_types else None


def check_stacked(method: str, stacked: Any, params: Any = None) -> int:
    """The length m of the leading axis.

    Raises:
      ValueError: no leaf, a leaf without axes, leaves of several lengths, m = 0, or leaves that do not match the
        parameters.
    """
    lengths = {name: jnp.shape(x)[:1] for name, x in zip(names(stacked), jax.tree.leaves(stacked), strict=True)}
    if len(set(lengths.values())) != 1 or () in lengths.values():
        found = {name: length[0] if length else "no axis" for name, length in lengths.items()}
        raise ValueError(
            f"{method}: every leaf needs the same leading axis, one entry per gradient, got {found or 'no leaf'}"
        )
    ((m,),) = set(lengths.values())
    if m == 0:
        raise ValueError(f"{method}: the leading axis has length 0, and there is no gradient to aggregate")
    if params is not None:
        check_match(method, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacked), params)
    return m


def gramian(stacked: Any) -> jax.Array:
    """Inner products of all pairs of stacked gradients, over the whole tree.

    Equations: at the head of this file; the real part for complex leaves.

    Args:
      stacked: tree of arrays with a common leading axis of length m >= 1.

    Returns:
      (m, m), symmetric, float32 or as wide as the widest leaf, in the highest precision of matrix products.

    Raises:
      ValueError: leading axes that differ, or are missing.

    Example:
      >>> print(gramian({"a": jnp.array([[1.0, 2.0], [0.0, 1.0]]), "b": jnp.array([1.0, -1.0])}))
      [[6. 1.]
       [1. 2.]]

    Reference: none.
    """
    check_stacked("gramian", stacked)
    leaves = jax.tree.leaves(stacked)
    wide = max((_real(x.dtype) for x in leaves), key=lambda dtype: dtype.itemsize)

    def leaf(x: jax.Array) -> jax.Array:
        # All axes are contracted as they are: flattening a sharded leaf would gather it.
        rest = tuple(range(1, x.ndim))
        x = x.astype(wide_dtype(x.dtype))
        where = _everywhere(x)
        product = jax.lax.dot_general(x, jnp.conj(x), ((rest, rest), ((), ())), precision=HIGHEST, out_sharding=where)
        return jnp.real(product).astype(wide)

    return functools.reduce(operator.add, map(leaf, leaves))


def combine(stacked: Any, weights: jax.Array) -> Any:
    """The weighted sum of stacked gradients.

    Equations: at the head of this file.

    Args:
      stacked: tree of arrays with a common leading axis of length m >= 1.
      weights: (m,), real.

    Returns:
      The tree without the leading axis, in its own dtypes; sums are float32 or wider.

    Raises:
      ValueError: leading axes that differ, or weights of another length.

    Example:
      >>> print(combine(jnp.array([[1.0, 2.0], [0.0, 1.0]]), jnp.array([1.0, -1.0])))
      [1. 1.]

    Reference: none.
    """
    m = check_stacked("combine", stacked)
    if jnp.shape(weights) != (m,):
        raise ValueError(f"combine: weights must have shape ({m},), got {jnp.shape(weights)}")

    def leaf(x: jax.Array) -> jax.Array:
        wide = x.astype(wide_dtype(x.dtype))
        w = weights.astype(wide.dtype).reshape(m, *[1] * (x.ndim - 1))
        return jnp.sum(w * wide, axis=0).astype(x.dtype)

    return jax.tree.map(leaf, stacked)


def aggregator(
    method: str, init: Callable[[], Any], weigh: Callable[..., tuple[jax.Array, Any]]
) -> optax.GradientTransformationExtraArgs:
    """An aggregator whose weights follow from the Gramian.

    Args:
      method: the public name, for messages.
      init: () -> state.
      weigh: (G, state, **extra) -> (weights, state).

    Returns:
      A transformation: `init` gets parameters WITHOUT the leading axis, updates come in with it and leave without.
    """

    def init_fn(params: Any) -> Any:
        check_leaves(method, params, complex_leaves=True)
        return init()

    def update_fn(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if not jax.tree.leaves(updates) and not jax.tree.leaves(params):
            return updates, state
        check_stacked(method, updates, params)
        check_leaves(method, updates, complex_leaves=True)
        weights, state = weigh(gramian(updates), state, **extra)
        return combine(updates, weights), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
