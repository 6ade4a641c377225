"""Narrow formats: how a float32 array is rounded to fewer bits and kept in them.

A sum that grows by less than half a spacing never moves if it is rounded to nearest: an average in bfloat16 with a
decay of 0.999 stays where it is. What is summed over steps is therefore rounded up with a chance that makes the
mean exact, where `threshold`, a number of 16 bits that is uniform over many draws, reaches the part that is cut:

    even      s = scale * code / 127                    code = floor(127 s / scale + threshold)
    rooted    s = scale * ((code + 128) / 255)^2        for blocks without negative numbers, as second moments are

The thresholds of a state are a dither instead of random numbers: over the steps they fall evenly between two
neighbours, so an average follows its own decay more closely than by chance. They depend on step and column only:
no key is needed, and layers that are stacked in one leaf are rounded as they are apart.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.engine.core import divide


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
        return self.value.astype(jnp.float32)


class Blocks(NamedTuple):
    """A float32 array kept in 8 bits: codes of its shape, and a scale per block of the last axis, which is negative
    where the block is rooted."""

    codes: jax.Array
    scales: jax.Array

    def decode(self) -> jax.Array:
        columns = self.codes.shape[-1]
        scale = jnp.repeat(self.scales, -(-columns // self.scales.shape[-1]), axis=-1)[..., :columns]
        q = self.codes.astype(jnp.float32)
        return jnp.where(scale < 0, -scale * jnp.square((q + 128) / 255), scale * (q / 127))


def encode_bfloat16(s: jax.Array, count: jax.Array) -> Narrow:
    """The array in bfloat16, dithered."""
    return Narrow(between(s, dither(count, s)).astype(jnp.bfloat16))


def encode_int8(s: jax.Array, count: jax.Array, block: int) -> Blocks:
    """The array in 8-bit codes, dithered; the largest of a block is kept exactly."""
    columns = s.shape[-1]
    blocks = -(-columns // block)
    width = -(-columns // blocks)
    padded = jnp.pad(s, [(0, 0)] * (s.ndim - 1) + [(0, blocks * width - columns)])
    threshold = dither(count, padded).astype(jnp.float32) * 2.0**-16
    threshold = threshold.reshape((*threshold.shape[:-1], blocks, width))
    s = padded.reshape((*s.shape[:-1], blocks, width))

    scale = jnp.max(jnp.abs(s), axis=-1, keepdims=True)
    unit = divide(s, scale)
    even = jnp.floor(127 * unit + threshold)

    # Between two neighbouring squares the chances are linear in s itself: it is s, not its root, that is averaged.
    below = jnp.clip(jnp.floor(255 * jnp.sqrt(jnp.maximum(unit, 0))), 0, 254)
    chance = (255**2 * unit - jnp.square(below)) / (2 * below + 1)
    level = below + (chance + threshold >= 1).astype(jnp.float32)
    # A second moment that was positive and became 0 would be divided by.
    level = jnp.where(unit > 0, jnp.maximum(level, 1), 0)

    rooted = (jnp.min(s, axis=-1, keepdims=True) >= 0) & (scale > 0)
    codes = jnp.where(rooted, level - 128, even).astype(jnp.int8)
    codes = codes.reshape(padded.shape)[..., :columns]
    return Blocks(codes, jnp.where(rooted, -scale, scale)[..., 0])


def is_encoded(node: Any) -> bool:
    """Whether a node of a tree is an array in one of these formats."""
    return isinstance(node, Narrow | Blocks)


def decode(tree: Any) -> Any:
    """The tree with every encoded array in float32."""
    return jax.tree.map(lambda s: s.decode() if is_encoded(s) else s, tree, is_leaf=is_encoded)
