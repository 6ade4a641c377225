"""The gradients of several losses at one point, computed when and as far as an aggregator asks for them.

With losses L_1 ... L_m of the parameters and their gradients g_i, in chunks of c that are held at the same time:

    fold       f(... f(f(start, g_1), g_2) ..., g_m)        c gradients in memory
    gramian    G_ij = <g_i, g_j>                            2 c gradients in memory, m (m / c + 1) / 2 backward passes
    combine    w_1 g_1 + ... + w_m g_m                      1 backward pass, of w_1 L_1 + ... + w_m L_m
    stacked    the tree with a leading axis of length m     m gradients in memory

An aggregator is written for both forms that its updates may come in: `LazyGradients`, or a tree that is stacked.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gradkit.engine import backend
from gradkit.engine.core import real_dtype, wide_dtype

HIGHEST = jax.lax.Precision.HIGHEST
COLUMNS = 2**13  # of some tens of rows fit into a cache


def at_most(chunk: int, count: int) -> int:
    """The largest divisor of `count` that is not above `chunk`.

    >>> at_most(4, 10), at_most(4, 3), at_most(4, 7)
    (2, 3, 1)
    """
    return max(c for c in range(1, min(chunk, count) + 1) if count % c == 0)


def _replicated(x: jax.Array) -> NamedSharding | None:
    """On a mesh of Explicit axes, where the program has to say it, a small matrix is replicated."""
    mesh = jax.typeof(x).sharding.mesh
    return NamedSharding(mesh, P(None, None)) if AxisType.Explicit in mesh.axis_types else None


def _products_by_columns(x: jax.Array, y: jax.Array) -> jax.Array:
    """x y^H, some columns after the other. A product of rows that are longer than a cache is read by XLA's CPU backend
    once per pair of rows."""

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        x, y = x.astype(wide_dtype(x.dtype)), y.astype(wide_dtype(y.dtype))
        return jax.lax.dot_general(x, jnp.conj(y), (((1,), (1,)), ((), ())), precision=HIGHEST)

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + product(*(jax.lax.dynamic_slice_in_dim(z, i * COLUMNS, COLUMNS, 1) for z in (x, y)))

    times, left = divmod(x.shape[1], COLUMNS)
    start = product(*(jax.lax.slice_in_dim(z, times * COLUMNS, times * COLUMNS + left, axis=1) for z in (x, y)))
    return jax.lax.fori_loop(0, times, add, start)


def inner_products(a: Any, b: Any) -> jax.Array:
    """The inner products of the gradients of one stack with those of another, over the whole tree: (m, n)."""
    wide = max((real_dtype(wide_dtype(x.dtype)) for x in jax.tree.leaves(a)), key=lambda dtype: dtype.itemsize)

    def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
        if backend.one_cpu() and math.prod(x.shape[1:]) >= 4 * COLUMNS:
            return jnp.real(_products_by_columns(*(z.reshape(len(z), -1) for z in (x, y)))).astype(wide)
        # All axes are contracted as they are: flattening a sharded leaf would gather it.
        rest = tuple(range(1, x.ndim))
        x, y = x.astype(wide_dtype(x.dtype)), y.astype(wide_dtype(y.dtype))
        where = _replicated(x)
        product = jax.lax.dot_general(x, jnp.conj(y), ((rest, rest), ((), ())), precision=HIGHEST, out_sharding=where)
        return jnp.real(product).astype(wide)

    return functools.reduce(operator.add, map(leaf, jax.tree.leaves(a), jax.tree.leaves(b)))


@dataclasses.dataclass(frozen=True, eq=False)
class LazyGradients:
    """The gradients of m losses, one per task or example, of which no more is computed than is asked for.

    What `gk.gradients.task_gradients` and `gk.gradients.example_gradients` return in the place of a gradient, and what
    the first link of a chain must be an aggregator for. It is no tree of arrays: it is used within the function that is
    compiled, and not returned from it.

    Attributes:
      losses: (m,), the values of the losses.
      like: the parameters, whose shapes and dtypes every gradient has.
      chunk: how many gradients are held at the same time; divides m.
      rows: number of a chunk -> its gradients, stacked along a leading axis. Chunk i of k holds the gradients i, i + k,
        i + 2 k, ...
      weighted: (m,) -> the weighted sum of all gradients, in one backward pass.
    """

    losses: jax.Array
    like: Any
    chunk: int
    rows: Callable[[Any], Any]
    weighted: Callable[[jax.Array], Any]

    @property
    def count(self) -> int:
        """m, the number of gradients."""
        return self.losses.shape[0]

    def fold(self, function: Callable[[Any, Any, jax.Array], Any], start: Any) -> Any:
        """Reduces the gradients chunk by chunk.

        Args:
          function: (what was made of the chunks before, gradients of this chunk with a leading axis, their numbers) ->
            what is handed to the next chunk.
          start: what is handed to the first chunk.

        Returns:
          What the last chunk gave.
        """
        chunks = self.count // self.chunk
        if chunks == 1:
            return function(start, self.rows(0), jnp.arange(self.count, dtype=jnp.int32))
        strides = chunks * jnp.arange(self.chunk, dtype=jnp.int32)

        def one(carry: Any, i: jax.Array) -> tuple[Any, None]:
            return function(carry, self.rows(i), i + strides), None

        return jax.lax.scan(one, start, jnp.arange(chunks, dtype=jnp.int32))[0]

    def gramian(self) -> jax.Array:
        """(m, m): the inner products of all pairs; no more than two chunks of gradients are ever in memory."""
        chunks = self.count // self.chunk
        first = jax.eval_shape(lambda: self.rows(0))
        if chunks == 1:
            rows = self.rows(0)
            return inner_products(rows, rows)
        blocks = jnp.zeros((chunks, chunks, self.chunk, self.chunk), jax.eval_shape(inner_products, first, first).dtype)

        def row(blocks: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            own = self.rows(i)

            def pair(j: jax.Array, blocks: jax.Array) -> jax.Array:
                block = inner_products(own, self.rows(j))
                return blocks.at[i, j].set(block).at[j, i].set(block.T)

            blocks = blocks.at[i, i].set(inner_products(own, own))
            return jax.lax.fori_loop(jnp.zeros((), jnp.int32), i, pair, blocks), None

        blocks = jax.lax.scan(row, blocks, jnp.arange(chunks, dtype=jnp.int32))[0]
        # Chunk i holds the gradients i, i + k, ...: within an axis of G the number of the chunk comes last.
        return blocks.transpose(2, 0, 3, 1).reshape(self.count, self.count)

    def combine(self, weights: jax.Array) -> Any:
        """The weighted sum, in the dtypes of the parameters."""
        return jax.tree.map(lambda g, x: g.astype(x.dtype), self.weighted(weights), self.like)

    def stacked(self) -> Any:
        """All gradients, along a leading axis: m times the parameters in memory."""
        chunks = self.count // self.chunk
        if chunks == 1:
            return self.rows(0)
        rows = jax.lax.map(self.rows, jnp.arange(chunks, dtype=jnp.int32))
        if self.chunk == 1:
            return jax.tree.map(lambda x: jax.lax.squeeze(x, (1,)), rows)
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(self.count, *x.shape[2:]), rows)

    def _no_gradient(self, *_: Any) -> Any:
        raise ValueError(
            f"{self.count} gradients came where one was expected: the first link of the chain must be an aggregator, "
            "as in optax.chain(gk.aggregation.upgrad(), gk.adam(1e-3)), and wrappers such as gk.guard or gk.precision "
            "go around what follows it"
        )

    # What any other link asks of a leaf.
    shape = dtype = property(_no_gradient)
    __jax_array__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __pow__ = _no_gradient


def fold(gradients: Any, function: Callable[[Any, Any, jax.Array], Any], start: Any) -> Any:
    """`LazyGradients.fold`, also of a tree that is stacked already: it is one chunk.

    >>> fold(jnp.array([[1.0, 2.0], [3.0, 4.0]]), lambda total, g, i: total + g.sum(0), jnp.zeros(2)).tolist()
    [4.0, 6.0]
    """
    if isinstance(gradients, LazyGradients):
        return gradients.fold(function, start)
    count = jax.tree.leaves(gradients)[0].shape[0]
    return function(start, gradients, jnp.arange(count, dtype=jnp.int32))


def stacked(gradients: Any) -> Any:
    """`LazyGradients.stacked`; a tree that is stacked already as it is.

    >>> stacked(jnp.array([[1.0, 2.0]])).tolist()
    [[1.0, 2.0]]
    """
    return gradients.stacked() if isinstance(gradients, LazyGradients) else gradients
