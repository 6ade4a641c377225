"""Features of examples from their gradients: random projections of one gradient per example."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype
from gradkit.engine.keys import as_key
from gradkit.engine.matching import check_leaves
from gradkit.leaves import names
from gradkit.types import Key, PyTree

PAPER = Paper(
    "No Train, all Gain: Self-Supervised Gradients Improve Deep Frozen Representations",
    "Simoncini et al.",
    2024,
    "2407.10964",
)
# Entries of a gradient that are projected at a time: rows of signs that are in memory.
BLOCK = 1024


def _unit(x: jax.Array) -> jax.Array:
    """Every row divided by its norm; 0 where that is 0."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return jnp.where(square > 0, x / jnp.sqrt(jnp.where(square > 0, square, jnp.ones_like(square))), jnp.zeros_like(x))


def _projected(key: jax.Array, x: jax.Array, dim: int) -> jax.Array:
    """(examples, entries) to (examples, dim) by a matrix of signs, which is drawn block by block."""
    size = x.shape[1]
    rows = min(BLOCK, size)
    blocks = -(-size // rows)
    x = jnp.pad(x, ((0, 0), (0, blocks * rows - size)))

    def one(i: Any, total: jax.Array) -> jax.Array:
        signs = jax.random.rademacher(jax.random.fold_in(key, i), (rows, dim), x.dtype)
        return total + jax.lax.dynamic_slice_in_dim(x, i * rows, rows, axis=1) @ signs

    return jax.lax.fori_loop(0, blocks, one, jnp.zeros((len(x), dim), x.dtype))


def gradient_features(
    loss_fn: Callable[..., Any],
    params: PyTree,
    batch: Any,
    *,
    dim: int,
    key: Key,
    leaves: Callable[[Any], Any] | None = None,
    chunk: int = 8,
    normalize: bool = True,
) -> jax.Array:
    """Features of the examples of a batch for retrieval and nearest neighbours: projected gradients (FUNGI).

        g_i = the gradient of the loss of example i by the chosen leaves, as one vector of D entries
        z_i = R^T g_i / sqrt(dim),        R (D, dim) of random signs
        feature i = z_i / |z_i|

    Inner products of projections are those of gradients, with errors of about |g| |h| / sqrt(dim). Features of several
    losses, and the embedding divided by its own norm, are concatenated: `jnp.concatenate([embeddings, ...], axis=1)`.

    Args:
      loss_fn: (params, batch) -> scalar, a mean over examples, without labels: the KL divergence of the output from a
        uniform distribution, or a contrastive loss with fixed negatives. It is called with batches of one example.
      params: of the frozen network.
      batch: a tree whose leaves have one leading axis of n examples.
      dim: length of the features, >= 1; the official code has that of the embedding.
      key: a typed key or an integer, for the signs: the same for all batches that are to be compared.
      leaves: which leaves are differentiated, as `gk.leaves.by_path` selects them; one layer near the output does: the
        paper has the projection behind the last attention. Default None: all.
      chunk: gradients that are computed at the same time, >= 1; the largest divisor of n that is not above it is taken.
        A multiple of the devices that share the batch keeps all of them busy. Default 8.
      normalize: whether features are divided by their norm. Default True (official code).

    Returns:
      (n, dim), in float32 or wider. Memory: `chunk` gradients of the chosen leaves, and the signs of 1024 of their
      entries. Collectives: none with examples sharded over devices.

    Raises:
      ValueError: an argument outside its range; a batch without one leading axis; `leaves` that select none.

    Example:
      >>> loss = lambda w, x: jnp.mean(jnp.square(x @ w))
      >>> x = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
      >>> z = gradient_features(loss, jnp.array([1.0, -2.0]), x, dim=512, key=0)
      >>> z.shape, round(float(z[0] @ z[1]), 3), abs(float(z[0] @ z[2])) < 0.2
      ((4, 512), 1.0, True)

    Reference: Simoncini et al. No Train, all Gain: Self-Supervised Gradients Improve Deep Frozen Representations. 2024,
    arXiv 2407.10964. Departures from the code: it holds the whole matrix of signs, and divides by the root of D, which
    the normalization takes out again.
    """
    checks.arrays(batch=batch)
    checks.arrays(params=params)
    if leaves is not None:
        checks.function("leaves", leaves)
    checks.switch(normalize=normalize)
    chunk = checks.integer("chunk", chunk, 1)
    dim = checks.integer("dim", dim, 1)
    checks.function("loss_fn", loss_fn)
    check_leaves("gradient_features", params, complex_leaves=False)
    batch = jax.tree.map(jnp.asarray, batch)
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(batch)}
    if len(sizes) != 1 or () in sizes or (0,) in sizes:
        shapes = [jnp.shape(x) for x in jax.tree.leaves(batch)]
        raise ValueError(
            f"gradient_features: batch must have leaves with one leading axis of examples, got shapes {shapes}; write "
            "x[None] for a single example"
        )
    ((n,),) = sizes
    all_leaves, structure = jax.tree.flatten(params)
    chosen = [True] * len(all_leaves) if leaves is None else [bool(x) for x in jax.tree.leaves(leaves(params))]
    if len(chosen) != len(all_leaves) or not any(chosen):
        raise ValueError(
            f"gradient_features: leaves must select one leaf at least of {names(params)}, got {leaves!r}; write "
            "gk.leaves.by_path('.*/kernel')"
        )
    own = [x for x, taken in zip(all_leaves, chosen, strict=True) if taken]

    def one(example: Any) -> list[jax.Array]:
        def loss(own: list[Any]) -> Any:
            rest = iter(own)
            merged = [next(rest) if taken else x for x, taken in zip(all_leaves, chosen, strict=True)]
            return loss_fn(structure.unflatten(merged), jax.tree.map(lambda x: x[None], example))

        return jax.grad(loss)(own)

    keys = as_key(key)

    def of_chunk(examples: Any) -> jax.Array:
        rows = [g.reshape(len(g), -1) for g in jax.vmap(one)(examples)]
        rows = [g.astype(wide_dtype(g.dtype)) for g in rows]
        parts = [_projected(jax.random.fold_in(keys, i), g, dim) for i, g in enumerate(rows)]
        return sum(parts[1:], parts[0])

    c = next(c for c in range(min(chunk, n), 0, -1) if n % c == 0)
    # Chunk i holds the examples i, i + n / c, ...: of a batch sharded over devices, some of every device.
    parts = jax.tree.map(lambda x: x.reshape(c, n // c, *x.shape[1:]).swapaxes(0, 1), batch)
    z = jax.lax.map(of_chunk, parts).swapaxes(0, 1).reshape(n, dim)
    return _unit(z) if normalize else z / jnp.sqrt(jnp.asarray(dim, z.dtype))


register(gradient_features, form="program", paper=PAPER)
