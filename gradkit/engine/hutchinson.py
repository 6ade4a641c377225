"""Hutchinson's estimate of the diagonal of a Hessian from products with it.

    h = mean over samples of z (H z),    z of random signs, or standard normal:    E[h] = diag(H)

With signs, h is diag(H) for every z where H is diagonal. AdaHessian averages h over the entries that share an output
unit: |h| over the inputs of a matrix, over the window of a convolution, over the features of one entry of an embedding.
"""

import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.engine.core import widen
from gradkit.engine.matching import check_match
from gradkit.engine.sums import block_sums, own_key, own_parts, whole_shape
from gradkit.leaves import Layout, axes_of, map_named, names

DISTRIBUTIONS = ("rademacher", "normal")
SPATIAL = (None, "conv", "all")


def check_hutchinson(num_samples: Any, distribution: Any, absolute: Any, spatial_average: Any) -> None:
    """Checks the arguments that every estimate has."""
    num_samples = checks.integer("num_samples", num_samples, 1)
    checks.choice("distribution", distribution, DISTRIBUTIONS)
    checks.choice("absolute", absolute, (True, False))
    checks.choice("spatial_average", spatial_average, SPATIAL)


def probe(key: jax.Array, like: Any, distribution: str) -> Any:
    """One z: by the names of the leaves, so equal on data replicas, and independent on shards of one leaf."""

    def drawn(name: str, x: jax.Array) -> jax.Array:
        own = own_key(jax.random.fold_in(key, zlib.crc32(name.encode())), name, x.ndim)
        # Added to zeros of the leaf, which are sharded as it is.
        if distribution == "normal":
            return jnp.zeros_like(x) + jax.random.normal(own, x.shape, x.dtype)
        return jnp.zeros_like(x) + jax.random.rademacher(own, x.shape, x.dtype)

    return map_named(drawn, like)


def _spatial_axes(name: str, shape: tuple[int, ...], spatial_average: str, layout: Layout | None) -> tuple[int, ...]:
    axes = axes_of(layout, name, shape)
    if axes.role == "conv":
        return axes.inputs[:-1]
    if spatial_average == "conv":
        return ()
    return axes.outputs if axes.role == "embedding" else axes.inputs


def spatial_mean(h: Any, spatial_average: str, layout: Layout | None) -> Any:
    """Every entry replaced by the mean over the entries that share its unit."""
    known, leaves = names(h), jax.tree.leaves(h)
    whole = [whole_shape(name, x.shape) for name, x in zip(known, leaves, strict=True)]
    axes = [_spatial_axes(name, shape, spatial_average, layout) for name, shape in zip(known, whole, strict=True)]
    chosen = [i for i, own in enumerate(axes) if own]
    some, xs = [known[i] for i in chosen], [leaves[i] for i in chosen]
    sums = own_parts(some, xs, block_sums(some, xs, [axes[i] for i in chosen]))
    for i, x, total in zip(chosen, xs, sums, strict=True):
        leaves[i] = jnp.zeros_like(x) + total / max(math.prod(whole[i][a] for a in axes[i]), 1)
    return jax.tree.structure(h).unflatten(leaves)


def hutchinson(
    hvp_fn: Callable[[Any], Any],
    like: Any,
    key: Any,
    *,
    num_samples: Any = 1,
    distribution: str = "rademacher",
    absolute: bool = False,
    spatial_average: str | None = None,
    layout: Layout | None = None,
) -> Any:
    """The estimate, in float32 or wider.

    Args:
      hvp_fn: vector tree -> product with the Hessian.
      like: the parameters.
      key: random key.
      num_samples: how many z, >= 1; may be traced.
      distribution: "rademacher" or "normal".
      absolute: whether |h| is returned.
      spatial_average: None, "conv" or "all".
      layout: what the axes of a leaf mean.
    """

    def sample(i: Any) -> Any:
        z = probe(jax.random.fold_in(key, i), like, distribution)
        product = hvp_fn(z)
        check_match("the Hessian-vector product", product, like)
        return jax.tree.map(lambda a, b: a * b, widen(z), widen(product))

    if type(num_samples) is int and num_samples == 1:
        h = sample(0)
    else:
        zero = jax.tree.map(jnp.zeros_like, widen(like))
        total = jax.lax.fori_loop(0, num_samples, lambda i, total: jax.tree.map(jnp.add, total, sample(i)), zero)
        h = jax.tree.map(lambda t: t / jnp.asarray(num_samples).astype(t.dtype), total)
    if absolute:
        h = jax.tree.map(jnp.abs, h)
    return h if spatial_average is None else spatial_mean(h, spatial_average, layout)
