"""Norms of blocks of leaves: the whole tensor, one output unit, or all leaves together.

A block never mixes stacked layers: the layout says which axes enumerate separate tensors. On a mesh the numbers of
all leaves are one exchange (`sums.py`); a method asks for all it needs at once.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from gradkit.engine.at_once import at_once
from gradkit.engine.backend import one_cpu
from gradkit.engine.core import abs_sq, cast, real_dtype
from gradkit.engine.sums import block_sums, own_parts, whole_shape
from gradkit.leaves import Layout, axes_of, names, tensor_axes, unit_axes

BLOCKS = ("tensor", "unit")
# As many numbers are added up at a time.
WIDTH = 32


def block_axes(name: str, shape: tuple[int, ...], block: str, layout: Layout | None) -> tuple[int, ...]:
    """The axes that a block of this leaf spans."""
    axes = axes_of(layout, name, shape)
    return tensor_axes(axes, shape) if block == "tensor" else unit_axes(axes, shape)


def entries(name: str, block: str, layout: Layout | None, shape: tuple[int, ...]) -> int:
    """How many entries a block of this leaf has: of the whole leaf, also where a device has a shard of this shape."""
    return math.prod(whole_shape(name, shape)[a] for a in block_axes(name, shape, block, layout))


class Packed(NamedTuple):
    """One number per block of every leaf, and per quantity: on a mesh they are one exchange. The numbers are those of
    whole leaves, also where a device has a shard.

    Arithmetic on them is done leaf by leaf (`each`), by programs that are the same for all leaves of a shape and so are
    compiled once. Taken out of one vector, every leaf's numbers would make a program of their own (12 ms each).

    Attributes:
      parts: per quantity, per leaf, its numbers along the axes of the whole leaf (length 1 where summed).
      like: the leaves, whose dtypes `own` gives back.
      own: what `parts` holds (or anything of such shapes), per leaf -> what broadcasts against what this device has.
    """

    parts: tuple[list[jax.Array], ...]
    like: Sequence[jax.Array]
    own: Callable[[list[jax.Array]], list[jax.Array]]

    @property
    def sizes(self) -> list[int]:
        """Per leaf, how many numbers of every quantity are its own."""
        return [x.size for x in self.parts[0]]

    @property
    def vectors(self) -> tuple[jax.Array, ...]:
        """Per quantity, the numbers of all blocks: for what is computed from all of them together."""
        return tuple(map(concatenated, self.parts))

    def whole(self, function: Callable[..., jax.Array], *more: Sequence[Any]) -> list[jax.Array]:
        """Per leaf, a function of its numbers (one argument per quantity, and one of each of `more`)."""
        rows = [*zip(*self.parts, *more, strict=True)]
        # Traced once per shape. Where nothing is traced this would compile it anew at every call.
        run = jax.jit(function) if any(isinstance(x, Tracer) for row in rows for x in row) else function
        return [cast(run(*row), real_dtype(x.dtype)) for row, x in zip(rows, self.like, strict=True)]

    def each(self, function: Callable[..., jax.Array], *more: Sequence[Any]) -> list[jax.Array]:
        """What `whole` gives, as it broadcasts against what this device has."""
        return self.own(self.whole(function, *more))

    def spread(self, vector: jax.Array) -> list[jax.Array]:
        """A vector of such numbers as one array per leaf that broadcasts against it."""
        parts = jax.lax.split(vector, self.sizes) if self.sizes else []
        rows = zip(parts, self.parts[0], self.like, strict=True)
        return self.own([cast(part.reshape(own.shape), real_dtype(x.dtype)) for part, own, x in rows])


def concatenated(row: Sequence[jax.Array]) -> jax.Array:
    """The numbers of all leaves as one vector, in the widest of their dtypes; float32 where there are none."""
    dtype = max((x.dtype for x in row), key=lambda d: d.itemsize, default=jnp.dtype(jnp.float32))
    return jnp.concatenate([cast(x.reshape(-1), dtype) for x in row]) if row else jnp.zeros((0,), dtype)


def added_up(row: Sequence[jax.Array]) -> jax.Array:
    """The sum of the numbers of all leaves, in the widest of their dtypes; 0 where there are none.

    Of a sum of one vector, or of one `+` per leaf, XLA makes one program, with all that the numbers are made of; its
    compilation takes three times as long for twice as many leaves. The sum of the rows of a matrix it leaves alone.

    >>> added_up([jnp.ones((2, 1)), jnp.array([4.0])] * 50).item()
    300.0
    """
    vector = concatenated(row)
    if len(row) > WIDTH:
        rows = -(-vector.size // WIDTH)
        vector = jnp.sum(jnp.pad(vector, (0, rows * WIDTH - vector.size)).reshape(rows, WIDTH), axis=1)
    return jnp.sum(vector)


def mean_of_all(row: Sequence[jax.Array]) -> jax.Array:
    """The mean of the numbers of all leaves, in float32; 1 where there are none.

    >>> mean_of_all([jnp.ones((2, 1)), jnp.array([4.0])]).item()
    2.0
    """
    return cast(added_up(row) / sum(x.size for x in row), jnp.float32) if row else jnp.ones((), jnp.float32)


def packed_sums(
    known: Sequence[str], block: str, layout: Layout | None, *quantities: Sequence[jax.Array], like: Sequence[jax.Array]
) -> Packed:
    """The sums over every block of some leaves, of one or more quantities that have the shapes of the leaves.

    Args:
      known: the names of the leaves.
      block: "tensor" or "unit".
      layout: which axes are stacks and outputs.
      *quantities: per quantity one array per leaf, real.
      like: the leaves, whose dtypes the results of arithmetic on the sums have.

    Returns:
      The sums; one exchange for all quantities and leaves.

    >>> from gradkit.leaves import default_layout
    >>> w = [jnp.full((3, 2, 8), 2.0)]
    >>> sums = packed_sums(["ScanBlock_0/kernel"], "tensor", default_layout, w, [x * x for x in w], like=w)
    >>> [v.tolist() for v in sums.vectors], sums.spread(sums.vectors[0])[0].shape
    ([[32.0, 32.0, 32.0], [64.0, 64.0, 64.0]], (3, 1, 1))
    """
    axes = [block_axes(name, x.shape, block, layout) for name, x in zip(known, like, strict=True)]
    n = len(axes)
    sums = block_sums([*known] * len(quantities), [x for row in quantities for x in row], axes * len(quantities))
    parts = tuple(sums[i * n : (i + 1) * n] for i in range(len(quantities)))
    return Packed(parts, like, functools.partial(own_parts, known, like))


def packed_norms(
    known: Sequence[str], block: str, layout: Layout | None, *trees: Sequence[jax.Array], large: Sequence[int] = ()
) -> Packed:
    """The Euclidean norm of every block of some leaves, for one or more lists of such leaves.

    Args:
      known: the names of the leaves.
      block: "tensor" or "unit".
      layout: which axes are stacks and outputs.
      *trees: lists of leaves.
      large: in which of them numbers are seen whose squares overflow, float32 ones above 1e19, as gradients may be that
        are to be clipped.

    >>> from gradkit.leaves import default_layout
    >>> norms = packed_norms(["ScanBlock_0/kernel"], "tensor", default_layout, [jnp.ones((3, 2, 8))])
    >>> norms.vectors[0].tolist()
    [4.0, 4.0, 4.0]
    """
    rows = [list(leaves) for leaves in trees]
    some = [rows[i] for i in large]

    def sums(quantities: Sequence[Sequence[jax.Array]]) -> Packed:
        return packed_sums(known, block, layout, *quantities, like=rows[0])

    if _in_one_pass():
        both = sums([*squares(rows), *_small_squares(some)])
        found, small = both.parts[: len(rows)], both.parts[len(rows) :]
    else:
        both = sums(squares(rows))
        found = both.parts
        small = _where_needed([found[i] for i in large], lambda: [*sums(_small_squares(some)).parts])
    norms = dict(enumerate(_roots(found))) | {i: _roots(found[i], x) for i, x in zip(large, small, strict=True)}
    return both._replace(parts=tuple(norms.values()))


@at_once
def squares(tree: Any) -> Any:
    """The squares of all entries of all leaves, of their magnitudes where they are complex."""
    return jax.tree.map(abs_sq, tree)


@at_once
def _small_squares(tree: Any) -> Any:
    return jax.tree.map(_small_square, tree)


@at_once
def _roots(*trees: Any) -> Any:
    """The roots of sums of squares, or of pairs of them as `_root` has them."""
    return jax.tree.map(_sqrt if len(trees) == 1 else _root, *trees)


def _in_one_pass() -> bool:
    """Whether the sums of numbers made smaller are made with those of squares, for nothing beside these where reading
    takes longest. XLA's CPU compiler makes a pass of each, and there no other device waits for them."""
    return not one_cpu()


def _where_needed(sums: Any, small: Callable[[], Any]) -> Any:
    """The sums of numbers made smaller, where those of squares have overflowed; else zeros, which are not looked at."""
    if not jax.tree.leaves(sums):
        return sums
    finite, none = jnp.isfinite(added_up(jax.tree.leaves(sums))), functools.partial(jax.tree.map, jnp.zeros_like, sums)
    if isinstance(finite, Tracer):
        return jax.lax.cond(finite, none, small)
    return none() if finite else small()


def _least(dtype: Any) -> float:
    """A power of two, so that nothing is rounded: of numbers that are multiplied by it the squares stay finite, also
    the sum of 2^30 of the largest."""
    return 2.0 ** (-5 * jnp.finfo(dtype).maxexp // 8)


@jax.jit
def _small_square(x: jax.Array) -> jax.Array:
    # Without a bound, which is far below what counts, XLA would square first and multiply then.
    return jnp.square(jnp.maximum(jnp.abs(x) * _least(x.dtype), _least(x.dtype) ** 0.75))


@jax.jit
def _root(square: jax.Array, small: jax.Array) -> jax.Array:
    """The norm from the sum of squares or, where that has overflowed, from the one of numbers made smaller."""
    finite = jnp.isfinite(square)
    norm = jnp.sqrt(jnp.where(finite, square, small))
    return jnp.where(finite, norm, norm / _least(square.dtype))


@jax.jit
def _sqrt(x: jax.Array) -> jax.Array:
    return jnp.sqrt(x)


def global_sums(*trees: Any) -> list[jax.Array]:
    """Per tree, the sum over all entries of all leaves; one exchange for all of them. Trees of one structure.

    >>> [float(x) for x in global_sums({"a": jnp.ones(3)}, {"a": jnp.arange(3.0)})]
    [3.0, 3.0]
    """
    rows = [jax.tree.leaves(tree) for tree in trees]
    if not rows or not rows[0]:
        return [jnp.zeros((), jnp.float32) for _ in trees]
    flat = [x for row in rows for x in row]
    sums = block_sums(names(trees[0]) * len(rows), flat, [tuple(range(x.ndim)) for x in flat])
    n = len(rows[0])
    return [added_up(sums[i : i + n]) for i in range(0, n * len(rows), n)]


def global_square(tree: Any) -> jax.Array:
    """The sum of |x|^2 over all entries of all leaves; 0 of an empty tree."""
    return global_sums(squares(tree))[0]


def global_norm(tree: Any) -> jax.Array:
    """Euclidean norm over all leaves together; 0 of an empty tree. Also of float32 numbers above 1e19, whose squares
    overflow: the sum of squares of numbers made smaller is taken too, in the same exchange.

    >>> round(float(global_norm({"a": jnp.array([3e25, 0.0]), "b": jnp.array(4e25)}) / 1e25), 4)
    5.0
    """
    if _in_one_pass():
        return _root(*global_sums(squares(tree), _small_squares(tree)))
    square = global_square(tree)
    return _root(square, _where_needed(square, lambda: global_sums(_small_squares(tree))[0]))
