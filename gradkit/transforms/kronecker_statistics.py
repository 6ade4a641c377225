"""The second moments of gradients along every axis of a tensor, kept for what comes behind in the chain.

The equations are in the docstring of `gk.shampoo`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.blocks import cut_blocks, kept_of_blocks, sorted_axes
from gradkit.engine.core import increment, transformation
from gradkit.engine.fields import init_fields
from gradkit.engine.kronecker import BY_LAYOUT, accumulate, init_factors, merge_backwards, statistic
from gradkit.engine.mapping import map_stacks
from gradkit.engine.planning import as_tensors, plan_stacks
from gradkit.engine.shards import MatrixSharding, check_shard
from gradkit.engine.stacks import Plan
from gradkit.leaves import Layout
from gradkit.types import Scalar


class KroneckerStatisticsState(NamedTuple):
    """Number of updates made; of every parameter, by the shapes of its blocks and their axes, the statistics. With
    `shard`, by stacks of equal tensors, each with its owners."""

    count: jax.Array
    S: Any


class Statistics(NamedTuple):
    """What belongs to the tensors of a stack."""

    S: Any


def kronecker_statistics(
    *,
    b2: Scalar = 1.0,
    block_size: int | None = None,
    merge_dims: bool = False,
    max_dim: int = 1024,
    one_sided: bool = False,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Keeps the second moments of gradients along every axis of a tensor; updates pass unchanged.

    Equations: S_i and L_i of `shampoo`. A stack axis of the layout enumerates tensors.

    Args:
      b2: 1 for a sum, below 1 the decay of a running mean (not bias-corrected), in [0, 1]. Default 1 (Shampoo's paper).
      block_size: largest length of a block; every block has statistics of its own. Default None: no blocks.
      merge_dims: whether short axes are joined, from the last to the first, while the product is within `block_size`
        (without blocks, within `max_dim`). Default False.
      max_dim: a longer axis keeps its diagonal alone. Default 1024 (official code's largest block).
      one_sided: whether only the shorter one of the axes of a matrix has statistics. Default False.
      layout: which axes are stacks.
      shard: a `gk.MatrixSharding`: over which devices the work is spread. Default None.

    Returns:
      A transformation. State: the sum of the squares of the lengths of the axes, per tensor; under its name, one array
      per shape of a block and axis; with `shard`, with its owner. Collectives: those of `scale_by_muon`.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = kronecker_statistics()
      >>> g = jnp.array([[1.0, 2.0], [0.0, 3.0]])
      >>> _, state = tx.update(g, tx.init(g))
      >>> {axis: S.tolist() for axis, S in state.S["0"].items()}
      {'0': [[5.0, 6.0], [6.0, 9.0]], '1': [[1.0, 2.0], [2.0, 13.0]]}

    Reference: Gupta, Koren, Singer. Shampoo: Preconditioned Stochastic Tensor Optimization. 2018, arXiv 1802.09568.
    """
    checks.layout(layout)
    checks.switch(merge_dims=merge_dims, one_sided=one_sided)
    checks.real("b2", b2, "[0, 1]")
    block_size = checks.integer("block_size", block_size, 1, optional=True)
    max_dim = checks.integer("max_dim", max_dim, 1)

    check_shard(shard)

    def pieces_of(dims: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        dims = merge_backwards(dims, block_size or max_dim) if merge_dims else dims
        return dims, block_size or max(dims)

    def used(shape: Sequence[int]) -> list[int]:
        """The axes that have a statistic."""
        alone = one_sided and len(shape) == 2
        return [min((0, 1), key=lambda a: shape[a])] if alone else list(range(len(shape)))

    def make(rows: int, dims: tuple[int, ...], dtype: Any, _: Any) -> Statistics:
        def zeros(count: int, shape: tuple[int, ...], axes: Sequence[int]) -> Sequence[jax.Array]:
            lengths = [shape[a] for a in axes]
            return init_factors(count, lengths, dtype, [d > max_dim for d in lengths])[0]

        merged, limit = pieces_of(dims)
        return Statistics(kept_of_blocks(zeros, rows, dims, merged, limit, used))

    def kernel(x: jax.Array, own: Statistics, numbers: Any, _: Any) -> tuple[jax.Array, Statistics]:
        dims, limit = pieces_of(x.shape[1:])
        out = []
        for G, Ls in zip(cut_blocks(x, dims, limit), own.S, strict=True):
            new: dict[str, jax.Array] = {}
            for a, L in sorted_axes(Ls):
                rank = 2 if L.shape[-2:] == (G.shape[a + 1],) * 2 and L.ndim > 2 else 1
                flat = L.reshape(-1, *L.shape[L.ndim - rank :])
                new[str(a)] = accumulate(flat, statistic(G, a, diagonal=rank == 1), numbers["b2"]).reshape(L.shape)
            out.append(new)
        return x, Statistics(tuple(out))

    def planned(tree: Any) -> Plan:
        return plan_stacks(tree, make, method="kronecker_statistics", layout=layout, shard=shard, view=as_tensors)

    def init(params: optax.Params) -> KroneckerStatisticsState:
        return KroneckerStatisticsState(jnp.zeros((), jnp.int32), **init_fields(planned(params), params))

    def update(updates: Any, state: KroneckerStatisticsState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        _, fields = map_stacks(planned(updates), kernel, updates, {"S": state.S}, {"b2": b2})
        return updates, KroneckerStatisticsState(increment(state.count), **fields)

    return transformation("kronecker_statistics", init, update)


register(
    kronecker_statistics,
    form="primitive",
    paper=Paper("Shampoo: Preconditioned Stochastic Tensor Optimization", "Gupta, Koren, Singer", 2018, "1802.09568"),
    words=2,
    collectives="matrices",
    opt_outs=BY_LAYOUT,
)
