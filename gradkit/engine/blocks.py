"""Tensors cut into blocks of bounded size, and what is kept of the axes of every block.

(B, d_1, ..., d_k) --joined axes--> (B, e_1, ..., e_j) --cut--> per shape of a block (B times blocks, b_1, ..., b_j)
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradkit.engine.parts import Part, beside


def merged_axes(dims: Sequence[int], merged: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The axes of a tensor that each axis of its merged form is made of; those of length 1 in none, or in any.

    >>> merged_axes((2, 1, 4, 6), (8, 6)), merged_axes((3, 4), (3, 4))
    (((0, 1, 2), (3,)), ((0,), (1,)))
    """
    out, at = [], 0
    for length in merged:
        group: list[int] = []
        while at < len(dims) and (math.prod(dims[a] for a in group) < length or dims[at] == 1):
            group.append(at)
            at += 1
        out.append(tuple(group))
    return tuple(out)


def factor_sources(groups: Sequence[tuple[int, ...]], axis: int, rank: int = 2) -> tuple[tuple[int, ...], ...]:
    """What a matrix (or with rank 1 a diagonal) of one axis may be sharded like: its rows first like that axis, its
    columns first like another one.

    >>> factor_sources(((0,), (1,), (2,)), 1)
    ((1, 0, 2), (0, 2, 1))
    """
    others = tuple(a for i, group in enumerate(groups) if i != axis for a in group)
    return ((*groups[axis], *others), (*others, *groups[axis]))[:rank]


def blocks_of(dims: Sequence[int], limit: int) -> dict[tuple[int, ...], list[tuple[slice, ...]]]:
    """The blocks of at most `limit` along every axis, in order, by their shape.

    >>> [(shape, len(blocks)) for shape, blocks in blocks_of((6, 4), 4).items()]
    [((4, 4), 1), ((2, 4), 1)]
    """
    cuts = [[slice(i, min(i + limit, d)) for i in range(0, d, limit)] for d in dims]
    out: dict[tuple[int, ...], list[tuple[slice, ...]]] = {}
    for block in itertools.product(*cuts):
        out.setdefault(tuple(s.stop - s.start for s in block), []).append(block)
    return out


def cut_blocks(x: jax.Array, dims: Sequence[int], limit: int) -> list[jax.Array]:
    """Tensors (B, ...) as tensors of these dims, cut: per shape of a block one array (B times blocks, ...)."""
    x = x.reshape(x.shape[0], *dims)
    every = slice(None)
    return [
        jnp.stack([x[(every, *block)] for block in blocks], axis=1).reshape(-1, *shape)
        for shape, blocks in blocks_of(dims, limit).items()
    ]


def join_blocks(pieces: Sequence[jax.Array], dims: Sequence[int], limit: int, like: jax.Array) -> jax.Array:
    """The inverse of `cut_blocks`, in the shape of `like`."""
    known: dict[tuple[int, ...], jax.Array] = {}
    for (shape, blocks), piece in zip(blocks_of(dims, limit).items(), pieces, strict=True):
        apart = piece.reshape(-1, len(blocks), *shape)
        known |= {tuple(s.start for s in block): apart[:, i] for i, block in enumerate(blocks)}

    def join(start: tuple[int, ...]) -> jax.Array:
        axis = len(start)
        if axis == len(dims):
            return known[start]
        parts = [join((*start, i)) for i in range(0, dims[axis], limit)]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=axis + 1)

    return join(()).reshape(like.shape)


def kept_of_blocks(
    make: Callable[[int, tuple[int, ...], Sequence[int]], Sequence[jax.Array]],
    rows: int,
    dims: tuple[int, ...],
    merged: tuple[int, ...],
    limit: int,
    used: Callable[[tuple[int, ...]], Sequence[int]] = lambda shape: range(len(shape)),
) -> tuple[Any, ...]:
    """What is kept of the axes of every block, (rows, blocks along every axis, ...): per shape of a block by its axes.

    Args:
      make: (number of blocks, shape of a block, axes) -> an array for each of them, along a leading axis of blocks.
      rows: how many tensors there are.
      dims: the lengths of their axes.
      merged: those of the axes that are cut.
      limit: the largest length of a block.
      used: shape of a block -> the axes of which something is kept.
    """
    groups, out = merged_axes(dims, merged), []
    for shape in blocks_of(merged, limit):
        grid = tuple(max(d // limit, 1) if b == min(limit, d) else 1 for d, b in zip(merged, shape, strict=True))
        axes = used(shape)
        own: dict[str, Part] = {}
        for axis, x in zip(axes, make(rows * math.prod(grid), shape, axes), strict=True):
            sources = factor_sources(groups, axis, x.ndim - 1)
            if math.prod(grid) > 1:
                x, sources = x.reshape(rows, *grid, *x.shape[1:]), (*groups, *sources)
            own[str(axis)] = beside(x, sources)
        out.append(own)
    return tuple(out)


def sorted_axes(own: Mapping[str, Any]) -> list[tuple[int, Any]]:
    """What is kept by axes, in their order."""
    return sorted((int(axis), x) for axis, x in own.items())
