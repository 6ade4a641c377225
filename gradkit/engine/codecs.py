"""Narrow formats: how a float32 array is rounded to fewer bits and kept in them.

A sum that grows by less than half a spacing never moves if it is rounded to nearest: an average in bfloat16 with a
decay of 0.999 stays where it is. What is summed over steps is therefore rounded up with a chance that makes the
mean exact, where `threshold`, a number of 16 bits that is uniform over many draws, reaches the part that is cut:

    even      s = scale * code / 127                    code = floor(127 s / scale + threshold)
    rooted    s = scale * ((code + 128) / 255)^2        for blocks without negative numbers, as second moments are

The thresholds of a state are a dither instead of random numbers: over the steps they fall evenly between two
neighbours, so an average follows its own decay more closely than by chance. They depend on step and column only:
no key is needed, and layers that are stacked in one leaf are rounded as they are apart. What is a code already, as
what did not change since the last step, stays what it is.

Of square matrices the diagonal is kept as it is, and the codes are those of the other entries: statistics, their roots
and triangular factors have their largest entries there, and what is 0 there has no inverse. In 8 bits a number that is
not finite makes its block not finite.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.engine.core import divide
from gradkit.engine.explicit import by_compiler
from gradkit.leaves.derived import derived, unboxed

FORMATS = ("bfloat16", "int8-block")
# The dtypes that have codes; of two bytes there is nothing to gain by bfloat16.
CODED = (np.dtype(jnp.float32), np.dtype(jnp.bfloat16), np.dtype(jnp.float16))
# A number and the code made of it differ by a few roundings of float32.
ROUNDING = 2.0**-21


def nearest(x: jax.Array, dtype: Any) -> jax.Array:
    """x with the bits of a narrower dtype, still in float32. A cast there and back may be dropped by XLA."""
    info = jnp.finfo(dtype)
    rounded = jax.lax.reduce_precision(x, info.nexp, info.nmant)
    if info.nexp == 8:
        return rounded
    # Below its normal numbers reduce_precision gives 0, where float16 still has evenly spaced ones.
    spacing = float(info.smallest_subnormal)
    return jnp.where(jnp.abs(x) < float(info.tiny), jnp.round(x / spacing) * spacing, rounded)


def between(x: jax.Array, threshold: jax.Array) -> jax.Array:
    """x with the bits of bfloat16: a neighbour above in size where the dropped 16 bits reach 2^16 - threshold."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + threshold
    cut = jax.lax.bitcast_convert_type(bits & np.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), cut, x)


def dither(count: jax.Array, like: jax.Array) -> jax.Array:
    """16-bit thresholds, one per column: multiples of the golden ratio, of which any run of steps is even."""
    column = jax.lax.iota(jnp.uint32, like.shape[-1]).reshape((1,) * (like.ndim - 1) + (-1,))
    return (count.astype(jnp.uint32) * np.uint32(0x9E3779B9) + column * np.uint32(0xC13FA9A9)) >> np.uint32(16)


class Narrow(NamedTuple):
    """A float32 array kept in bfloat16."""

    value: jax.Array

    def decode(self) -> jax.Array:
        """The array that is kept."""
        return self.value.astype(jnp.float32)


class Exact(NamedTuple):
    """An array that is kept as it is, since its method does not survive its rounding."""

    value: jax.Array

    def decode(self) -> jax.Array:
        """The array that is kept."""
        return self.value


class Blocks(NamedTuple):
    """An array kept in 8 bits: codes of its shape, and a scale per block of the last axis, in the dtype of the array,
    which is negative where the block is rooted."""

    codes: jax.Array
    scales: jax.Array

    def decode(self) -> jax.Array:
        """The array that is kept."""
        return by_compiler(_decoded, self.codes, self.scales, like=self.codes)


class SquareBlocks(NamedTuple):
    """Square matrices kept in 8 bits: as `Blocks`, but for the diagonals, which are kept as they are."""

    codes: jax.Array
    scales: jax.Array
    diagonal: jax.Array

    def decode(self) -> jax.Array:
        """The array that is kept."""
        return by_compiler(_with_diagonal, Blocks(self.codes, self.scales).decode(), self.diagonal, like=self.codes)


Code = Narrow | Exact | Blocks | SquareBlocks


def on_diagonal(x: jax.Array) -> jax.Array:
    """Where the diagonals of square matrices are."""
    rows, columns = (jax.lax.broadcasted_iota(jnp.int32, x.shape[-2:], axis) for axis in (0, 1))
    return (rows == columns).reshape((1,) * (x.ndim - 2) + x.shape[-2:])


def _with_diagonal(x: jax.Array, diagonal: jax.Array) -> jax.Array:
    """Square matrices with other diagonals."""
    return jnp.where(on_diagonal(x), diagonal[..., None], x)


def _decoded(codes: jax.Array, scales: jax.Array) -> jax.Array:
    """What is kept in blocks."""
    columns, dtype, scales = codes.shape[-1], scales.dtype, scales.astype(jnp.float32)
    scale = jnp.repeat(scales, -(-columns // scales.shape[-1]), axis=-1)[..., :columns]
    q = codes.astype(jnp.float32)
    x = jnp.where(scale < 0, -scale * jnp.square((q + 128) / 255), scale * (q / 127))
    return x.astype(dtype)


def encode_bfloat16(s: jax.Array, count: jax.Array) -> Narrow:
    """The array in bfloat16, dithered."""
    return Narrow(between(s, dither(count, s)).astype(jnp.bfloat16))


def encode_int8(s: jax.Array, count: jax.Array, block: int) -> Blocks:
    """The array in 8-bit codes, dithered; the largest of a block is kept exactly."""
    code = partial(_blocks_of, block=block)
    return by_compiler(code, s, count, like=Blocks(s, jnp.max(s, axis=-1, keepdims=True)))


def _blocks_of(s: jax.Array, count: jax.Array, block: int) -> Blocks:
    """The codes of an array whose last axis is not sharded, or whose exchanges the compiler finds."""
    columns, dtype = s.shape[-1], s.dtype
    blocks = -(-columns // block)
    width = -(-columns // blocks)
    padded = jnp.pad(s.astype(jnp.float32), [(0, 0)] * (s.ndim - 1) + [(0, blocks * width - columns)])
    threshold = dither(count, padded).astype(jnp.float32) * 2.0**-16
    threshold = threshold.reshape((*threshold.shape[:-1], blocks, width))
    s = padded.reshape((*s.shape[:-1], blocks, width))

    scale = jnp.max(jnp.abs(s), axis=-1, keepdims=True)
    unit = divide(s, scale)
    even = _kept(127 * unit, jnp.floor(127 * unit + threshold))

    # Between two neighbouring squares the chances are linear in s itself: it is s, not its root, that is averaged.
    root = 255 * jnp.sqrt(jnp.maximum(unit, 0))
    below = jnp.clip(jnp.floor(root), 0, 254)
    chance = (255**2 * unit - jnp.square(below)) / (2 * below + 1)
    level = _kept(root, below + (chance + threshold >= 1).astype(jnp.float32))
    # A second moment that was positive and became 0 would be divided by.
    level = jnp.where(unit > 0, jnp.maximum(level, 1), 0)

    rooted = (jnp.min(s, axis=-1, keepdims=True) >= 0) & (scale > 0)
    codes = jnp.where(rooted, level - 128, even).astype(jnp.int8)
    codes = codes.reshape(padded.shape)[..., :columns]
    return Blocks(codes, jnp.where(rooted, -scale, scale)[..., 0].astype(dtype))


def _kept(x: jax.Array, level: jax.Array) -> jax.Array:
    """The level, but of what was made of a code, the code."""
    code = jnp.round(x)
    return jnp.where(jnp.abs(x - code) <= jnp.abs(code) * ROUNDING, code, level)


def encode_square(s: jax.Array, count: jax.Array, block: int) -> SquareBlocks:
    """Square matrices in 8-bit codes, but for their diagonals."""

    def code(s: jax.Array, count: jax.Array) -> SquareBlocks:
        beside = _with_diagonal(s, jnp.zeros(s.shape[:-1], s.dtype))
        return SquareBlocks(*_blocks_of(beside, count, block), jnp.diagonal(s, axis1=-2, axis2=-1))

    like = SquareBlocks(s, jnp.max(s, axis=-1, keepdims=True), jnp.max(s, axis=-1))
    return by_compiler(code, s, count, like=like)


def gains(s: Any, form: str, block: int) -> bool:
    """Whether an array takes fewer bytes in one of `FORMATS`."""
    if not s.ndim or not s.size:
        return False
    size = s.dtype.itemsize
    if form == "bfloat16":
        return size > 2
    columns = s.shape[-1]
    return columns + size * (-(-columns // block) + _is_square(s)) < size * columns


def _is_square(s: Any) -> bool:
    return s.ndim > 1 and s.shape[-2] == s.shape[-1]


def encode(s: jax.Array, form: str, count: jax.Array, block: int) -> Any:
    """The array in one of `FORMATS`.

    Args:
      s: an array of a dtype in `CODED`.
      form: one of `FORMATS`.
      count: the number of the step, for the dither.
      block: entries of the last axis that share a scale.
    """
    if form == "bfloat16":
        return encode_bfloat16(s, count)
    return (encode_square if _is_square(s) else encode_int8)(s, count, block)


def like_box(box: Any, code: Any) -> Any:
    """A code whose arrays are in boxes as the array is that it was made of: a scale has the names of all axes of the
    array but the last, and so does a diagonal."""
    (own,) = jax.tree.leaves(box)

    def one(x: jax.Array) -> Any:
        same = x.shape == own.shape
        return derived(box, x, [(a,) if same or a < own.ndim - 1 else () for a in range(x.ndim)])

    return jax.tree.map(one, code)


def is_encoded(node: Any) -> bool:
    """Whether a node of a tree is an array in one of these formats."""
    return isinstance(node, Code)


def decode(tree: Any) -> Any:
    """The tree with every encoded array as it was given."""
    return jax.tree.map(lambda s: unboxed(s).decode() if is_encoded(s) else s, tree, is_leaf=is_encoded)
