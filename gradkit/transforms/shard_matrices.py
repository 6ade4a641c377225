"""A function of matrices as a link of a chain, its work shared out over a mesh.

    updates --layout--> stacks of equal matrices (B, n, m) --function, a share of B per device--> updates

The path is that of every matrix method, see `gradkit/engine/mapping.py`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import stateless, transformation
from gradkit.engine.mapping import apply_to_matrices
from gradkit.engine.planning import plan_stacks
from gradkit.engine.shards import MatrixSharding, check_shard
from gradkit.leaves import Layout, axes_of, map_named
from gradkit.linalg.orthogonalize import orthogonalize

PAPER = Paper("Dion: Distributed Orthonormalized Updates", "Ahn et al.", 2025, "2504.05295")
ROLES = ("matrix", "conv", "expert")


def shard_matrices(
    function: Callable[[jax.Array], jax.Array],
    *,
    shard: MatrixSharding | None = None,
    transpose: bool = False,
    pad: bool = False,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Applies a function to every matrix among the updates, each on one device of a mesh.

    Matrices of one shape are one batch: stacked layers, experts, heads and fused weights (`splits` of the layout) are
    matrices of their own, a convolution is one. Leaves that are no matrices (roles other than "matrix", "conv" and
    "expert" of the layout) pass as they are. The methods of this library that work on matrices take `shard` themselves
    and need no wrapper; this is for a function of your own: another orthogonalisation, a projection, a spectral clip.

    Args:
      function: (B, n, m) -> (B, n, m), of every matrix for itself: rows are inputs, columns outputs. It sees padding,
        zero matrices at the end of the batch, and must not fail on them.
      shard: a `gk.MatrixSharding`: over which devices the work is spread. Default None: over those that leaves are cut
        along where a mesh of Explicit axes says so; else on every device.
      transpose: whether function(X^T) = function(X)^T: then it is given wide matrices alone (n <= m), and both kinds
        are one batch. Default False.
      pad: whether zero rows and columns change nothing but that they come back as zeros: then matrices of several
        shapes may be made one batch where that leaves fewer idle devices. Default False.
      layout: which leaves are matrices, and which axes are inputs, outputs and stacks.

    Returns:
      A transformation without state. Collectives: none without a mesh; leaves cut along a matrix axis: two all-to-alls
      per shape; replicated leaves with `shard`: one all-gather.

    Raises:
      ValueError: `function` that is none, or that returns another shape; `shard` that is no MatrixSharding.

    Example:
      >>> clip = lambda x: x / jnp.maximum(jnp.linalg.norm(x, 2, (1, 2), keepdims=True), 1.0)  # spectral norm
      >>> tx = shard_matrices(clip)
      >>> g = {"bias": jnp.ones(2), "kernel": jnp.diag(jnp.array([4.0, 2.0]))}
      >>> updates, _ = tx.update(g, tx.init(g))
      >>> print(updates["bias"], updates["kernel"].round(3).tolist())
      [1. 1.] [[1.0, 0.0], [0.0, 0.5]]

    Reference: Ahn et al. Dion: Distributed Orthonormalized Updates. 2025, arXiv 2504.05295, whose code gives whole
    matrices to devices in this way; its Muon sends one all-to-all per shape and way, as here.
    """
    checks.layout(layout)
    checks.function("function", function)
    checks.choice("transpose", transpose, (True, False))
    checks.choice("pad", pad, (True, False))
    check_shard(shard)

    def kernel(x: jax.Array) -> jax.Array:
        y = function(x)
        if jnp.shape(y) != x.shape:
            raise ValueError(f"function must return the shape it is given, {x.shape}, got {jnp.shape(y)}")
        return y.astype(x.dtype)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        matrices = map_named(lambda name, x: x if axes_of(layout, name, x.shape).role in ROLES else None, updates)
        if not jax.tree.leaves(matrices):
            return updates, state
        plan = plan_stacks(
            matrices, method="shard_matrices", layout=layout, shard=shard, transpose=transpose, merge=pad
        )
        done = apply_to_matrices(plan, kernel, matrices)
        leaves, structure = jax.tree.flatten(updates)
        found = structure.flatten_up_to(done)
        return structure.unflatten([x if y is None else y for x, y in zip(leaves, found, strict=True)]), state

    return transformation("shard_matrices", stateless("shard_matrices", layout), update)


register(
    shard_matrices,
    form="primitive",
    paper=PAPER,
    collectives="matrices",
    example={"function": orthogonalize, "transpose": True, "pad": True},
)
