"""NGAME: batches of examples that are near each other, whose negatives are hard."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.arrays import reals
from gradkit.engine.keys import as_key
from gradkit.types import Key

PAPER = Paper("NGAME: Negative Mining-aware Mini-batching for Extreme Classification", "Dahiya et al.", 2023)


def _halves(key: Any, x: jax.Array, real: jax.Array, iterations: int) -> jax.Array:
    """The order of one cluster of s rows, whose first half and second half are its two parts, each with half of the
    rows that are real, the first with one more of an odd number."""
    s = len(x)
    a, b = jax.lax.top_k(jnp.where(real, jax.random.uniform(key, (s,)), -1.0), 2)[1]
    half = (jnp.sum(real, dtype=jnp.int32) + 1) // 2
    infinity = jnp.asarray(jnp.inf, x.dtype)

    def unit(v: jax.Array) -> jax.Array:
        norm = jnp.linalg.norm(v)
        return v / jnp.where(norm > 0, norm, jnp.ones_like(norm))

    def first(axis: jax.Array) -> jax.Array:
        """The places of rows by how much nearer they are to the first centre; rows that are not real at the end."""
        order = jnp.argsort(jnp.where(real, -(x @ axis), infinity))
        return jnp.zeros(s, jnp.int32).at[order].set(jnp.arange(s, dtype=jnp.int32))

    def turn(_: Any, axis: jax.Array) -> jax.Array:
        mine = (first(axis) < half) & real
        sums = [jnp.sum(jnp.where(m[:, None], x, jnp.zeros_like(x)), axis=0) for m in (mine, real & ~mine)]
        return unit(sums[0]) - unit(sums[1])

    place = first(jax.lax.fori_loop(0, iterations, turn, unit(x[a]) - unit(x[b])))
    # Rows that only fill up: as many to the first half as it has room for.
    spare = jnp.cumsum(~real, dtype=jnp.int32) - 1
    left = jnp.where(real, place < half, spare < s // 2 - half)
    return jnp.argsort(~left, stable=True).astype(jnp.int32)


def cluster_batches(key: Key, embeddings: Any, cluster_size: int, batch_size: int, *, iterations: int = 8) -> jax.Array:
    """The batches of one epoch: unions of clusters in a random order, so that negatives of a batch are hard ones.

        a cluster is split into two of equal size by spherical 2-means, again and again, down to `cluster_size`
        clusters are shuffled, and put one behind another;  batch b has entries b B, ..., b B + B - 1

    A curriculum: begin with cluster_size 1, a random shuffle, and double it at given epochs; take new embeddings every
    few epochs.

    Args:
      key: a typed key or an integer, another one in every epoch.
      embeddings: (n, d), floating point, of the current model; lengths do not matter.
      cluster_size: largest size of a cluster, >= 1; halves of n are taken until they fit.
      batch_size: B, from 1 to n.
      iterations: of 2-means for every split, >= 0. Default 8.

    Returns:
      Indices (floor(n / B), B) int32, no one twice; what is left of the last batch is not used in this epoch.

    Raises:
      ValueError: an argument outside its range; embeddings that are not (n, d).

    Example:
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]])
      >>> sorted(sorted(batch) for batch in cluster_batches(0, x, 2, 2).tolist())
      [[0, 2], [1, 3]]

    Reference: Dahiya et al. NGAME: Negative Mining-aware Mini-batching for Extreme Classification. WSDM 2023.
    """
    cluster_size = checks.integer("cluster_size", cluster_size, 1)
    checks.integer("batch_size", batch_size, 1)
    iterations = checks.integer("iterations", iterations)
    x = reals("cluster_batches", "embeddings", embeddings, 2)
    n = len(x)
    batch_size = checks.integer("batch_size", batch_size, 1, maximum=n)
    key = as_key(key)
    levels = 0
    while -(-n // 2**levels) > cluster_size:
        levels += 1
    if cluster_size == 1:
        order = jax.random.permutation(key, n)
    else:
        norm = jnp.linalg.norm(x, axis=1, keepdims=True)
        x = x / jnp.where(norm > 0, norm, jnp.ones_like(norm))
        padded = -(-n // 2**levels) * 2**levels
        rows = jnp.arange(padded, dtype=jnp.int32)
        for level in range(levels):
            clusters = rows.reshape(2**level, -1)
            keys = jax.random.split(jax.random.fold_in(key, level), 2**level)
            split = jax.vmap(lambda k, r: r[_halves(k, x[jnp.minimum(r, n - 1)], r < n, iterations)])
            rows = split(keys, clusters).reshape(-1)
        clusters = jax.random.permutation(jax.random.fold_in(key, levels), rows.reshape(2**levels, -1))
        order = clusters.reshape(-1)
        order = order[jnp.argsort(order >= n, stable=True)][:n]
    return order[: n // batch_size * batch_size].reshape(-1, batch_size).astype(jnp.int32)


register(
    cluster_batches,
    form="function",
    paper=PAPER,
    example={
        "key": 0,
        "embeddings": jax.ShapeDtypeStruct((16, 4), "float32"),
        "cluster_size": 4,
        "batch_size": 4,
    },
)
