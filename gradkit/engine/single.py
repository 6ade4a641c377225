"""State of a matrix that is the only one in its stack, such as an embedding or a head: sharded along its own axes.

With an owner, one device would have all of its state, and every other device as much room for padding. Instead all
devices that share the stack work on the matrix, each has its shard of every array of the state, and what a kernel needs
is gathered for the step: large arrays one by one, small ones of a dtype together.

    (1, d_1, ..., d_k) on N devices        (1, ..., d_i / N, ...), along the longest axis that N divides
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gradkit.engine.placement import entries


def spec_of(shape: Sequence[int], owners: Sequence[str], single: Sequence[str], sizes: Mapping[str, int]) -> Any:
    """The spec of an array that is kept of a stack.

    Args:
      shape: of the array on all devices together; its first axis enumerates matrices.
      owners: the mesh axes along which that one is sharded.
      single: the mesh axes along which the others are, of a stack with a single matrix.
      sizes: of the mesh axes.

    >>> spec_of((8, 12, 50), ("x", "y"), (), {"x": 4, "y": 2}), spec_of((1, 12, 50), (), ("x", "y"), {"x": 4, "y": 2})
    (P(('x', 'y'),), P(None, 'x', 'y'))
    """
    out: list[tuple[str, ...]] = [tuple(owners), *[()] * (len(shape) - 1)]
    for name in single:
        ways = [math.prod(sizes[a] for a in (*own, name)) for own in out]
        fits = [i for i in range(1, len(shape)) if shape[i] and shape[i] % ways[i] == 0]
        if fits:
            longest = max(fits, key=lambda i: shape[i] // ways[i])
            out[longest] = (*out[longest], name)
    while out and not out[-1]:
        out.pop()
    return PartitionSpec(*(entry or None for entry in out))


# Smaller arrays, in bytes, are gathered together: the time of a collective is then that of its latency.
SMALL = 1 << 20


def _inner(spec: Any, rank: int) -> list[tuple[str, ...]]:
    """The mesh axes of every axis of an array but the first."""
    return [(), *entries(spec, rank)[1:]]


def gathered(arrays: Any, specs: Any, sizes: Mapping[str, int]) -> Any:
    """Arrays that are complete but for their first axis, of the shards that a device has of them."""
    leaves, structure = jax.tree.flatten(arrays)
    over = [_inner(spec, x.ndim) for x, spec in zip(leaves, structure.flatten_up_to(specs), strict=True)]
    joint: dict[Any, list[int]] = {}
    for i, own in enumerate(over):
        large = leaves[i].size * leaves[i].dtype.itemsize >= SMALL
        for axis, names in enumerate(own if large else ()):
            if names:
                leaves[i] = jax.lax.all_gather(leaves[i], names, axis=axis, tiled=True)
        if any(own) and not large:
            joint.setdefault((tuple(sorted({*itertools.chain(*own)})), leaves[i].dtype), []).append(i)
    for (axes, _), members in joint.items():
        flat = jnp.concatenate([leaves[i].reshape(-1) for i in members])
        shards = jax.lax.all_gather(flat, axes).reshape(*(sizes[a] for a in axes), -1)
        ends = [*itertools.accumulate(leaves[i].size for i in members)][:-1]
        for i, x in zip(members, jnp.split(shards, ends, axis=len(axes)), strict=True):
            local = leaves[i].shape
            x = x.reshape(*(sizes[a] for a in axes), *local)
            order = [[*(axes.index(a) for a in own), len(axes) + k] for k, own in enumerate(over[i])]
            lengths = [n * math.prod(sizes[a] for a in own) for n, own in zip(local, over[i], strict=True)]
            leaves[i] = x.transpose([*itertools.chain(*order)]).reshape(lengths)
    return structure.unflatten(leaves)


def shards_of(arrays: Any, specs: Any, sizes: Mapping[str, int]) -> Any:
    """The shards that this device has of arrays, the inverse of `gathered`."""

    def one(x: jax.Array, spec: Any) -> jax.Array:
        for axis, own in enumerate(_inner(spec, x.ndim)):
            if own:
                length = x.shape[axis] // math.prod(sizes[a] for a in own)
                x = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(own) * length, length, axis)
        return x

    leaves, structure = jax.tree.flatten(arrays)
    return structure.unflatten([one(x, spec) for x, spec in zip(leaves, structure.flatten_up_to(specs), strict=True)])
