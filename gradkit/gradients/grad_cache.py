"""Gradient cache: a contrastive loss of a large batch, with an encoder that sees a chunk of it at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.keys import as_key
from gradkit.gradients.accumulate import accumulate, split
from gradkit.gradients.replicas import mean_over, own_copy
from gradkit.leaves import names

PAPER = Paper(
    "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", "Gao et al.", 2021, "2101.06983"
)


def _checked(reps: Any, chunk: int) -> None:
    """Raises unless there is one representation per example."""
    leaves = dict(zip(names(reps), jax.tree.leaves(reps), strict=True))
    for name, r in leaves.items():
        array = isinstance(r, jax.Array | np.ndarray)
        if not array or r.shape[:1] != (chunk,) or not jnp.issubdtype(r.dtype, jnp.inexact):
            raise ValueError(
                f"grad_cache: encode must return floating point arrays with one representation for each of the {chunk} "
                f"examples of a chunk, got {f'{r.dtype} of shape {r.shape}' if array else repr(r)} for {name!r}; what "
                f"is no representation (a loss, statistics of BatchNorm) has no place there"
            )
    if not leaves:
        raise ValueError("grad_cache: encode must return representations, got no array")


def _filled(batch: Any, size: int) -> Any:
    """The batch padded to a size with its last example, on which the encoder is defined."""

    def leaf(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return x if x.shape[0] == size else x[jnp.minimum(jnp.arange(size), x.shape[0] - 1)]

    return jax.tree.map(leaf, batch)


def _in_order(stacked: Any, examples: int) -> Any:
    """Representations of microbatches in the order of the batch: `split` puts example i into microbatch i mod k."""
    return jax.tree.map(lambda r: r.swapaxes(0, 1).reshape(-1, *r.shape[2:])[:examples], stacked)


def grad_cache(
    encode: Callable[..., Any],
    loss_fn: Callable[..., Any],
    chunk: int,
    *,
    has_aux: bool = False,
    axis_name: Any = None,
) -> Callable[..., tuple[Any, Any]]:
    """Value and gradient of a loss that compares all examples of a batch, in the memory of a chunk.

    Equations:

        r_i = encode(params, x_i)                           chunk by chunk; nothing else is kept
        value = loss(r_1 ... r_B),   d_i = d value / d r_i
        g = sum_i (d r_i / d params)^T d_i                  chunk by chunk, with the same random keys

    The loss depends on all examples together, and each representation on one example, so this is the gradient of the
    batch, for one more forward pass. It keeps B representations, and the activations of one chunk. It replaces
    `jax.value_and_grad(lambda params, batch: loss_fn(encode(params, batch)))`.

    Args:
      encode: (params, chunk) -> representations, or (params, chunk, key) where a key is passed: an array, or a tree of
        them (one per tower), with one row per example that depends on no other. BatchNorm breaks this. A temperature
        that is trained multiplies the representations here.
      loss_fn: (representations of all examples, *args) -> scalar, or (scalar, aux). With
        `gk.parallel.tiled_contrastive_loss` the matrix of similarities does not exist either.
      chunk: examples that are encoded at one time, >= 1. Need not divide the batch: the last chunk is then padded with
        copies of the last example, which no loss sees. Where the batch is sharded over devices, each has a part of
        every chunk.
      has_aux: whether `loss_fn` returns (scalar, aux). Default False.
      axis_name: axis of `vmap` or `shard_map` whose members hold parts of the batch: representations are gathered,
        every member takes the loss of all of them, and gradients are averaged. Default None.

    Returns:
      fn(params, batch, key=None, *args, **kwargs) -> (value, gradient) or ((value, aux), gradient); the further
      arguments go to `loss_fn`. `batch` is any tree whose leaves have the same leading axis. `key`, a typed key or an
      integer, is split into one key per chunk, used in both passes; for random numbers that do not depend on the chunk
      size put a key per example into the batch. Sums over chunks are float32 or wider. Costs one forward pass more.
      Collectives with `axis_name`: a gather of the representations, a mean of the gradient.

    Raises:
      ValueError: at construction, functions that cannot be called, a chunk size below 1; when called, an empty batch
        or leaves of several batch sizes, representations that are not one row per example.

    Example:
      >>> encode = lambda w, x: x * w
      >>> spread = lambda r: -jnp.mean((r[:, None] - r[None]) ** 2)  # compares all with all
      >>> value, grads = grad_cache(encode, spread, 2)(jnp.array(1.0), jnp.array([1.0, 2.0, 4.0]))
      >>> round(float(value), 4), round(float(grads), 4)
      (-3.1111, -6.2222)

    Reference: Gao et al. Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup. 2021, arXiv
    2101.06983. The JAX part of the official code no longer runs. `jax.checkpoint` around the encoder in a scan gives
    the same gradient.
    """
    checks.axis_name("axis_name", axis_name)
    checks.switch(has_aux=has_aux)
    checks.function("encode", encode)
    checks.function("loss_fn", loss_fn)
    checks.integer("chunk", chunk, 1)

    def fn(params: Any, batch: Any, key: Any = None, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        own = own_copy(params, axis_name)
        B = jax.tree.leaves(split(batch, 1, "grad_cache"))[0].shape[1]
        K = -(-B // chunk)
        keys = () if key is None else (jax.random.split(as_key(key), K),)
        chunks = (split(_filled(batch, K * chunk), K, "grad_cache"), *keys)

        def one(params: Any, part: Any) -> Any:
            reps = encode(params, *part)
            _checked(reps, chunk)
            return reps

        reps = _in_order(jax.lax.map(lambda part: one(own, part), chunks), B)
        if axis_name is not None:
            reps = jax.lax.all_gather(reps, axis_name, tiled=True)
        value, d = jax.value_and_grad(loss_fn, has_aux=has_aux)(reps, *args, **kwargs)
        value, aux = value if has_aux else (value, None)
        if axis_name is not None:
            # Below, the mean over members is taken of n times the part through this member's representations.
            n, first = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name) * B
            d = jax.tree.map(lambda x: n * jax.lax.dynamic_slice_in_dim(x, first, B), d)

        def back(part_and_d: Any) -> tuple[Any, None]:
            part, d = part_and_d
            return jax.vjp(lambda params: one(params, part), own)[1](d)[0], None

        d = split(_zero_filled(d, K * chunk), K, "grad_cache")
        g, _ = accumulate(back, (chunks, d))
        value, g = mean_over((value, g), axis_name)
        return ((value, aux) if has_aux else value), jax.tree.map(lambda x, p: x.astype(p.dtype), g, params)

    return fn


def _zero_filled(d: Any, size: int) -> Any:
    """Cotangents of a padded batch: zeros for the copies."""
    return jax.tree.map(lambda x: jnp.pad(x, [(0, size - x.shape[0])] + [(0, 0)] * (x.ndim - 1)), d)


register(grad_cache, form="program", paper=PAPER, words=1)
