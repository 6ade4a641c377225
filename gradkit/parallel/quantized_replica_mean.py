"""The mean over replicas with quantized exchange: both halves of an all-reduce send integers."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, wide_dtype
from gradkit.parallel.compressors import Compressor, check_floating, compressing, no_state, number_of_replicas
from gradkit.types import DTypeLike, PyTree

PAPER = Paper("Scalable Methods for 8-bit Training of Neural Networks", "Banner et al.", 2018, "1805.11046")
NAME = "quantized_replica_mean"
BITS = (8, 4)


class Shape(NamedTuple):
    """How a leaf is divided: its entries, the blocks per chunk, and the entries per block."""

    entries: int
    blocks: int
    block: int


def _divide(entries: int, replicas: int, block: int, bits: int) -> Shape:
    chunk = max(1, -(-entries // replicas))
    blocks = -(-chunk // block)
    size = -(-chunk // blocks)
    return Shape(entries, blocks, size + size % (8 // bits))


def _chunks(x: jax.Array, replicas: int, shape: Shape) -> jax.Array:
    """The leaf as an array (W, blocks, block), padded with zeros."""
    missing = replicas * shape.blocks * shape.block - shape.entries
    return jnp.pad(x.reshape(-1), (0, missing)).reshape(replicas, shape.blocks, shape.block)


def encode_blocks(x: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """Integers (..., bytes) and float32 scales (...,) of blocks (..., block)."""
    levels = 2 ** (bits - 1) - 1
    scale = (jnp.max(jnp.abs(x), axis=-1) / levels).astype(jnp.float32)
    q = jnp.round(divide(x, jnp.broadcast_to(scale.astype(x.dtype)[..., None], x.shape)))
    q = jnp.clip(q, -levels, levels).astype(jnp.int8)
    if bits == 8:
        return q, scale
    nibbles = (q + np.int8(8)).astype(jnp.uint8)
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << np.uint8(4)), scale


def decode_blocks(q: jax.Array, scale: jax.Array, bits: int, dtype: DTypeLike) -> jax.Array:
    """The blocks that integers and scales encode."""
    if bits == 4:
        low, high = q & np.uint8(15), q >> np.uint8(4)
        q = jnp.stack([low, high], axis=-1).reshape(*q.shape[:-1], 2 * q.shape[-1]).astype(jnp.int8) - np.int8(8)
    return q.astype(dtype) * scale.astype(dtype)[..., None]


def _joined(pieces: list[jax.Array]) -> jax.Array:
    return jnp.concatenate([x.reshape(len(x), -1) for x in pieces], axis=1)


def _separated(x: jax.Array, like: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    ends = np.cumsum([math.prod(shape) for shape in like])[:-1]
    return [p.reshape(-1, *shape) for p, shape in zip(jnp.split(x, ends, axis=1), like, strict=True)]


def two_phase_mean(tree: PyTree, axis_name: Any, bits: int, block: int) -> tuple[Any, Any]:
    """(mean, sent) of the steps in `quantized_replica_mean`. The error of the second rounding counts as not sent by the
    owner of the chunk, which alone knows it: `mean` is then exactly the mean of what was sent."""
    W = number_of_replicas(NAME, axis_name)
    leaves, structure = jax.tree.flatten(tree)
    if not leaves:
        return tree, tree
    shapes = [_divide(x.size, W, block, bits) for x in leaves]
    of_q = [(s.blocks, s.block * bits // 8) for s in shapes]
    of_scale = [(s.blocks,) for s in shapes]
    first = [encode_blocks(_chunks(x, W, s), bits) for x, s in zip(leaves, shapes, strict=True)]
    said = [decode_blocks(q, scale, bits, x.dtype) for (q, scale), x in zip(first, leaves, strict=True)]
    q, scales = (
        jax.lax.all_to_all(_joined([pair[i] for pair in first]), axis_name, split_axis=0, concat_axis=0, tiled=True)
        for i in range(2)
    )
    means = [
        jnp.mean(decode_blocks(q, scale, bits, x.dtype), axis=0, keepdims=True)
        for q, scale, x in zip(_separated(q, of_q), _separated(scales, of_scale), leaves, strict=True)
    ]
    second = [encode_blocks(x, bits) for x in means]
    lost = [m - decode_blocks(q, scale, bits, m.dtype) for m, (q, scale) in zip(means, second, strict=True)]
    q, scales = (jax.lax.all_gather(_joined([pair[i] for pair in second]), axis_name, tiled=True) for i in range(2))
    out = [
        decode_blocks(q, scale, bits, x.dtype)
        for q, scale, x in zip(_separated(q, of_q), _separated(scales, of_scale), leaves, strict=True)
    ]
    own = jax.lax.axis_index(axis_name)
    sent = [s.at[own].add(-W * e[0]) for s, e in zip(said, lost, strict=True)]
    whole = [[y.reshape(-1)[: x.size].reshape(x.shape) for y, x in zip(ys, leaves, strict=True)] for ys in (out, sent)]
    return structure.unflatten(whole[0]), structure.unflatten(whole[1])


def _check(bits: Any, block: Any) -> int:
    checks.choice("bits", bits, BITS)
    return checks.integer("block", block, 1)


def quantized_replica_mean(tree: PyTree, axis_name: Any = "replica", *, bits: int = 8, block: int = 256) -> Any:
    """The mean of a tree over the replicas, exchanged in 8 or 4 bits per entry.

    Every leaf is split into W chunks, one per replica, and a chunk into blocks of about `block` entries.

    Equations, for a block x and the mean x' of its decoded values over the replicas, with L = 127 (7 in 4 bits):

        scale = max|x| / L,   q = round(x / scale)              q = 0 where all x are 0
        x'    = (1/W) sum_w scale_w q_w                         in float32
        scale' = max|x'| / L,   q' = round(x' / scale')
        mean  = scale' q'

    The exchange of a leaf of n entries:

        1.  quantise all chunks of the own leaf                         q, scale
        2.  all-to-all: every replica gets its own chunk of all         n bytes (n / 2 in 4 bits), and the scales
        3.  mean over the replicas in float32                           x'
        4.  quantise the mean                                           q', scale'
        5.  all-gather: every replica gets all chunks of the mean       n bytes (n / 2), and the scales

    A ring sends 2 n (W - 1) / W bytes where the mean in float32 sends four times that. All replicas decode the same
    bytes, so their results have the same bits. There is no sum of int8: it would wrap around, and the scales differ. In
    `jax.shard_map` give it the shards of a replica as they are: under plain `jit`, shardings are constraints, and the
    compiler sends float32 before the rounding.

    Args:
      tree: real floating point leaves, of one replica.
      axis_name: name of the axis of the replicas, of `jax.vmap` or `jax.shard_map`; or a tuple of names. Default
        "replica".
      bits: 8 or 4. Default 8.
      block: entries that share a float32 scale, >= 1. Default 256: the scales add 1.6 % to the bytes.

    Returns:
      A tree like the one given, of its dtypes, the same bits on all replicas. Each of the two roundings changes
      an entry by at most half a step of its block: max|x| / 254 in 8 bits. A block with an entry that is not finite
      becomes NaN.
      Collectives: one all-to-all and one all-gather of integers, and of their scales.

    Raises:
      ValueError: leaves that are not real floating point numbers, an argument outside its range, no axis of this name.

    Example:
      >>> x = jnp.array([[127.0, 1.0], [127.0, 3.0]])  # two replicas
      >>> print(jax.vmap(quantized_replica_mean, axis_name="replica")(x))
      [[127.   2.]
       [127.   2.]]

    Reference: the scheme of torchft's quantized all-reduce, with int8 blocks in place of float8 rows; blocks with their
    maximum as scale: Banner et al. Scalable Methods for 8-bit Training of Neural Networks. 2018, arXiv 1805.11046.
    """
    checks.axis_name("axis_name", axis_name, optional=False)
    block = _check(bits, block)
    tree = jax.tree.map(jnp.asarray, tree)
    check_floating(NAME, tree)
    wide = jax.tree.map(lambda x: x.astype(wide_dtype(x.dtype)), tree)
    mean, _ = two_phase_mean(wide, axis_name, bits, block)
    return jax.tree.map(lambda m, x: m.astype(x.dtype), mean, tree)


def int8_compressor(
    *, bits: int = 8, block: int = 256, axis_name: Any = "replica"
) -> optax.GradientTransformationExtraArgs:
    """The compressor that rounds to bytes: `quantized_replica_mean`, which also reports the error of both roundings.

    Equations: those of `quantized_replica_mean`, with what was sent from replica w for error feedback:

        sent_w = scale_w q_w                                    for chunks of other replicas
        sent_w = scale_w q_w + W (mean - x')                    for its own chunk, whose second rounding it alone knows

        tx = optax.chain(gk.parallel.error_feedback(gk.parallel.int8_compressor()), gk.adamw(3e-4))

    Args:
      bits: 8 or 4. Default 8.
      block: entries that share a float32 scale, >= 1. Default 256: the scales add 1.6 % to the bytes.
      axis_name: name of the axis of the replicas, or a tuple of names. Default "replica".

    Returns:
      A compressor, and as a transformation: the gradient of a replica in, the mean out. No state. Collectives: one
      all-to-all and one all-gather of integers, and of their scales.

    Raises:
      ValueError: an argument outside its range; at `update`, no axis of this name.

    Example:
      >>> tx = int8_compressor()
      >>> g = jnp.array([[127.0, 1.2], [127.0, 3.0]])  # two replicas
      >>> print(jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="replica")(g)[0])
      [127.    2.1]

    Reference: as `quantized_replica_mean`: Banner et al. Scalable Methods for 8-bit Training of Neural Networks. 2018,
    arXiv 1805.11046.
    """
    block = _check(bits, block)

    def exchange(tree: Any, state: Any, axis_name: Any, *, key: Any = None) -> tuple[Any, Any, Any]:
        del key
        mean, sent = two_phase_mean(tree, axis_name, bits, block)
        return mean, sent, state

    return compressing("int8_compressor", Compressor(no_state, exchange), axis_name)


register(int8_compressor, form="exchange", paper=PAPER, collectives="replicas")
