"""Directional sharpness: the curvature of the loss along an update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, widen
from gradkit.engine.matching import check_leaves, check_match
from gradkit.engine.norms import global_norm
from gradkit.engine.sums import block_sums
from gradkit.leaves import names
from gradkit.types import PyTree


def _inner(a: Any, b: Any) -> jax.Array:
    """<a, b> over all leaves."""
    products = [x * y for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    sums = block_sums(names(a), products, [tuple(range(x.ndim)) for x in products])
    widest = max((s.dtype for s in sums), key=lambda d: d.itemsize, default=jnp.dtype(jnp.float32))
    return sum((s.reshape(()).astype(widest) for s in sums), jnp.zeros((), widest))


def _largest(tree: Any) -> jax.Array:
    sizes = [jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(tree)]
    widest = max((s.dtype for s in sizes), key=lambda d: d.itemsize, default=jnp.dtype(jnp.float32))
    return jnp.max(jnp.stack([s.astype(widest) for s in sizes])) if sizes else jnp.zeros((), widest)


def directional_sharpness(loss_fn: Callable[..., Any], params: PyTree, updates: PyTree, *args: Any) -> jax.Array:
    """Measures the curvature of a loss in the direction of an update.

    Equations, with the Hessian H of the loss f at the parameters x:

        sharpness(u) = u^T H u / |u|^2
        f(x + u) = f(x) + <g, u> + sharpness(u) |u|^2 / 2 + ...

    H u is one derivative of the gradient.

    Args:
      loss_fn: (params, *args) -> a scalar, twice differentiable.
      params: the parameters at which the curvature is measured.
      updates: the update (or any direction), a tree like `params`; only its direction counts, not its length or sign.
      *args: further arguments of the loss, such as a batch.

    Returns:
      One number, in float32 or wider; 0 for an update that is 0 everywhere. Collectives: two scalars where leaves are
      sharded, and what the loss needs.

    Raises:
      ValueError: a loss that cannot be called, or updates that do not match the parameters.

    Example:
      >>> loss = lambda x: 0.5 * (100 * x[0] ** 2 + x[1] ** 2)
      >>> x = jnp.ones(2)
      >>> g = jax.grad(loss)(x)
      >>> [round(float(directional_sharpness(loss, x, u)), 2) for u in (g, jnp.sign(g))]  # along the gradient, its sign
      [99.99, 50.5]

    Reference: Pan, Li. Toward Understanding Why Adam Converges Faster Than SGD for Transformers. 2023, arXiv
    2306.00204.
    """
    checks.arrays(params=params, updates=updates)
    checks.function("loss_fn", loss_fn)
    check_match("directional_sharpness", updates, params)
    for tree in (params, updates):
        check_leaves("directional_sharpness", tree, complex_leaves=False)
    direction = widen(updates)
    # Scaled by the largest entry first, because the square of a small entry may be 0 in float32.
    for length in (_largest, global_norm):
        size = length(direction)
        direction = jax.tree.map(lambda u, size=size: divide(u, size.astype(u.dtype)), direction)
    tangent = jax.tree.map(lambda u, x: u.astype(x.dtype), direction, params)
    product = jax.jvp(jax.grad(lambda x: loss_fn(x, *args)), (params,), (tangent,))[1]
    return _inner(direction, widen(product))


register(
    directional_sharpness,
    form="function",
    paper=Paper(
        "Toward Understanding Why Adam Converges Faster Than SGD for Transformers", "Pan, Li", 2023, "2306.00204"
    ),
)
