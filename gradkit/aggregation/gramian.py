"""Inner products between stacked gradients, and their combinations."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.engine.core import wide_dtype
from gradkit.engine.lazy_gradients import LazyGradients, inner_products
from gradkit.engine.matching import check_match
from gradkit.leaves import names
from gradkit.types import PyTree


def check_stacked(method: str, stacked: Any, params: PyTree = None) -> int:
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

    A stacked gradient is a gradient tree with one leading axis of length m on every leaf: one gradient per task,
    example or replica; `LazyGradients` represent one that is never in memory.

    Equations, with <a, b> summed over all leaves; the real part for complex leaves:

        G_ij = <g_i, g_j>

    An aggregator whose weights follow from G alone needs one sum of m^2 numbers for sharded gradients; the combination
    is local.

    Args:
      stacked: tree of arrays with a common leading axis of length m >= 1; or `gk.gradients.LazyGradients`.

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
    if isinstance(stacked, LazyGradients):
        return stacked.gramian()
    checks.arrays(stacked=stacked)
    check_stacked("gramian", stacked)
    return inner_products(stacked, stacked)


def combine(stacked: Any, weights: jax.Array) -> Any:
    """The weighted sum of stacked gradients.

    Equations:

        result = w_1 g_1 + ... + w_m g_m

    Args:
      stacked: tree of arrays with a common leading axis of length m >= 1; or `gk.gradients.LazyGradients`.
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
    lazy = isinstance(stacked, LazyGradients)
    checks.arrays(weights=weights, **({} if lazy else {"stacked": stacked}))
    m = stacked.count if lazy else check_stacked("combine", stacked)
    if jnp.shape(weights) != (m,):
        raise ValueError(f"combine: weights must have shape ({m},), got {jnp.shape(weights)}")
    if lazy:
        return stacked.combine(weights)

    def leaf(x: jax.Array) -> jax.Array:
        w = weights.astype(wide_dtype(x.dtype))
        if w.dtype == x.dtype:
            return jnp.tensordot(w, x, axes=1, precision=jax.lax.Precision.HIGHEST)
        # A matrix product would first copy all gradients into the wider dtype.
        return jnp.sum(w.reshape(m, *[1] * (x.ndim - 1)) * x.astype(w.dtype), axis=0).astype(x.dtype)

    return jax.tree.map(leaf, stacked)
