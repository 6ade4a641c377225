"""Digests of arrays and of notes, which tell a checkpoint that is what was written from one that is not.

    digest(x) = sum over all words  weight_1[i_1] * ... * weight_n[i_n] * x[i]   modulo 2^64

A word has 32 bits: items that have fewer are taken together along the last axis, and items that have more are several
words along an axis of their own. The weights of every axis are odd 64-bit numbers. Hence one word that changes always
changes the digest, and any other fixed change goes unnoticed with a probability of about 2^-32. A sum does not depend
on how the array is sharded: every process adds up the shards that it has, and the sums of all processes are added.
"""

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

BLOCK = 2**19  # words that are digested at a time, by one thread
ROW = 2**8  # words that a loop is worth its start for
LOW = 2**12  # the weight of index i is a product of one for i // LOW and one for i % LOW
WORDS = 63  # the axis of the words of an item that has several
HALF = np.uint64(32)

Sums = dict[str, int]


def _scrambled(x: np.ndarray) -> np.ndarray:
    """Odd numbers that look random, from numbers (the finalizer of SplitMix64)."""
    x = x * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return (x ^ (x >> np.uint64(31))) | np.uint64(1)


@functools.lru_cache(maxsize=64)
def _low_weights(axis: int) -> np.ndarray:
    return _scrambled(np.arange(1, LOW + 1, dtype=np.uint64) + np.uint64(axis << 48))


def _weights(axis: int, part: str, start: int, stop: int) -> np.ndarray:
    """The weights of the indices start to stop of an axis, or of their upper or lower parts alone."""
    if part == "low":
        return _low_weights(axis)[start:stop]
    if part == "high":
        return _scrambled(np.arange(start, stop, dtype=np.uint64) + np.uint64((axis << 48) | (1 << 47)))
    first = start // LOW
    high = _weights(axis, "high", first, (stop - 1) // LOW + 1)
    return np.multiply.outer(high, _low_weights(axis)).ravel()[start - first * LOW :][: stop - start]


@functools.lru_cache(maxsize=16)
def _products(parts: tuple[tuple[int, str, int, int], ...]) -> np.ndarray:
    """The products of the weights of several axes or parts of axes."""
    product = np.ones(1, np.uint64)
    for part in parts:
        product = np.multiply.outer(product, _weights(*part)).ravel()
    return product


@functools.lru_cache(maxsize=16)
def _pairs(parts: tuple[tuple[int, str, int, int], ...]) -> tuple[np.ndarray, np.ndarray]:
    """The weights a and b for which  w_0 l + w_1 h = a p + b h  of two words l and h in one number p = l + 2^32 h."""
    weights = _products(parts)
    low = np.ascontiguousarray(weights[0::2])
    return low, weights[1::2] - (low << HALF)


def _words(x: np.ndarray, start: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """An array as words, and where it starts, in words; the words of items of more than 32 bits are a new last axis."""
    if x.dtype.kind == "V" and jax.dtypes.issubdtype(x.dtype, np.integer):
        x = x.astype(np.int8)  # of an integer of 4 bits, what the other half of its byte holds has no meaning
    if x.ndim == 0:
        x, start = x.reshape(1), (0,)
    x = np.ascontiguousarray(x)
    if x.itemsize > 4:
        return x.reshape(*x.shape, 1).view(np.uint32), start
    together = 4 // x.itemsize
    x = x.view(f"u{x.itemsize}")
    before = start[-1] % together
    after = -(before + x.shape[-1]) % together
    if before or after:
        x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)])
    return x.view(np.uint32), (*start[:-1], start[-1] // together)


def _blocks(x: np.ndarray, start: tuple[int, ...]) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    """The array in parts of at most `BLOCK` words, each with the place where it starts."""
    if x.size <= BLOCK:
        yield x, start
        return
    axis = next(axis for axis, length in enumerate(x.shape) if length > 1)
    begin, end = start[axis], start[axis] + x.shape[axis]
    step = max(1, BLOCK * x.shape[axis] // x.size)
    step = step if step < LOW else step // LOW * LOW
    cuts = [begin, *range(begin // step * step + step, end, step), end]
    for first, last in itertools.pairwise(cuts):
        part = x[(slice(None),) * axis + (slice(first - begin, last - begin),)]
        yield from _blocks(part, (*start[:axis], first, *start[axis + 1 :]))


def _sum_of_block(block: tuple[np.ndarray, tuple[int, ...]]) -> int:
    x, start = block
    axes = [*zip(range(len(start)), start, x.shape, strict=False), *((WORDS, 0, n) for n in x.shape[len(start) :])]
    parts: list[tuple[int, str, int, int]] = []
    for axis, a, n in axes:
        if n > LOW and a % LOW == n % LOW == 0:
            parts += [(axis, "high", a // LOW, (a + n) // LOW), (axis, "low", 0, LOW)]
        else:
            parts.append((axis, "both", a, a + n))
    # The last axes together give a row that is long enough for a fast loop, and that many rows share.
    at, width = len(parts), 1
    while at and width < ROW:
        at -= 1
        width *= parts[at][3] - parts[at][2]
    columns, rows = tuple(parts[at:]), _products(tuple(parts[:at]))
    x = x.reshape(len(rows), width)
    if width % 2:
        sums = np.einsum("ij,j->i", x, _products(columns), dtype=np.uint64, casting="same_kind")
    else:
        # Two words at a time: no word need be made a longer number first, which takes longer than all else.
        low, high = _pairs(columns)
        pairs = x.view(np.uint64)
        sums = np.einsum("ij,j->i", pairs, low) + np.einsum("ij,j->i", pairs >> HALF, high)
    return int((sums * rows).sum(dtype=np.uint64))


def digest(x: np.ndarray, start: tuple[int, ...] | None = None) -> int:
    """The digest of an array, or the part that a shard has in the digest of an array.

    Args:
      x: the array or shard, of any dtype that an array of JAX may have.
      start: where the shard starts in the array. Default: at its beginning.

    Returns:
      A number below 2^64. The digests of all shards of an array add up to that of the array, modulo 2^64.

    Example:
      >>> x = np.arange(6.0).reshape(2, 3)
      >>> (digest(x[:, :1]) + digest(x[:, 1:], (0, 1)) - digest(x)) % 2**64
      0
      >>> x[1, 2] += 1e-9
      >>> digest(x) == digest(np.arange(6.0).reshape(2, 3))
      False
    """
    start = (0,) * x.ndim if start is None else start
    return sum(map(_sum_of_block, _blocks(*_words(x, start)))) % 2**64 if x.size else 0


def _begin_sums(arrays: Mapping[str, Any]) -> Callable[[], Sums]:
    """Starts to digest what this process has of the arrays, each item counted by one process; gives what waits for it.

    What is to be digested is on the host when this returns, so that the arrays may be deleted.
    """
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    parts: list[tuple[str, Future[int]]] = []
    for name, x in arrays.items():
        shards: list[tuple[Any, tuple[int, ...]]] = [(x, (0,) * np.ndim(x))]
        if isinstance(x, jax.Array):
            shards = [(s.data, tuple(i.start or 0 for i in s.index)) for s in x.addressable_shards if not s.replica_id]
        for shard, start in shards:
            if 0 not in shard.shape:
                blocks = _blocks(*_words(np.asarray(shard), start))
                parts += [(name, pool.submit(_sum_of_block, block)) for block in blocks]
    pool.shutdown(wait=False)

    def finish() -> Sums:
        total = dict.fromkeys(arrays, 0)
        for name, part in parts:
            total[name] = (total[name] + part.result()) % 2**64
        return total

    return finish


def sums(arrays: Mapping[str, Any]) -> Sums:
    """Per array, the digest of what this process has of it, each item counted by one process."""
    return _begin_sums(arrays)()


def begin(arrays: Mapping[str, Any]) -> Callable[[], dict[str, str]]:
    """Starts to digest arrays, beside whatever else is done meanwhile; gives what waits for their digests.

    Several processes add up their digests, which all have to do at the same time; therefore it is done at once there.
    """
    if jax.process_count() > 1:
        found = digests(arrays)[0]
        return lambda: found
    finish = _begin_sums(arrays)
    return lambda: {name: f"{value:016x}" for name, value in finish().items()}


def digests(arrays: Mapping[str, Any]) -> list[dict[str, str]]:
    """The digests of arrays, as text: one mapping from name to digest for every process.

    An array that is sharded over several processes has the same digest in all of them. Any other array is digested
    by every process for itself. All processes call this with the same names.
    """
    own = sums(arrays)
    rows = np.asarray([*own.values()], np.uint64)[None]
    if jax.process_count() > 1 and own:
        from jax.experimental import multihost_utils

        # As halves, because JAX has no 64-bit integers by default.
        halves = multihost_utils.process_allgather(rows.view(np.uint32))
        rows = np.ascontiguousarray(halves).reshape(jax.process_count(), -1).view(np.uint64)
        shared = [isinstance(x, jax.Array) and not x.is_fully_addressable for x in arrays.values()]
        rows = np.where(shared, rows.sum(axis=0, dtype=np.uint64), rows)
    return [dict(zip(own, (f"{value:016x}" for value in row.tolist()), strict=True)) for row in rows]


def check(arrays: Mapping[str, Any], wanted: Mapping[str, str]) -> None:
    """Raises where an array is not the one that was saved, in any process.

    Raises:
      OSError: an array has another digest; the message names it.
    """
    known = {name: x for name, x in arrays.items() if 0 not in x.shape}
    rows = digests(known)
    wrong = [
        f"array {name!r} (digest {row[name]}, saved {wanted.get(name)})"
        for name in known
        for row in rows
        if row[name] != wanted.get(name)
    ]
    if wrong:
        wrong = list(dict.fromkeys(wrong))
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise OSError(
            f"its files were changed after it was written: {'; '.join(wrong[:3])}{more} is not what was saved"
        )


def _of_note(note: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in note.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sealed(note: Mapping[str, Any]) -> dict[str, Any]:
    """A note, as JSON knows it, with its own digest.

    >>> sorted(sealed({"step": 3}))
    ['digest', 'step']
    """
    plain = json.loads(json.dumps(note))
    return {**plain, "digest": _of_note(plain)}


def is_sealed(note: Any) -> bool:
    """Whether a note is what `sealed` made of one, unchanged.

    >>> note = sealed({"step": 3})
    >>> is_sealed(note), is_sealed({**note, "step": 4}), is_sealed(None)
    (True, False, False)
    """
    return isinstance(note, dict) and note.get("digest") == _of_note(note)
