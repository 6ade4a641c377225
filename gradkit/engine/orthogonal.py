"""The matrices of a tree, each replaced by the nearest orthogonal one: one plan, one kernel per shape, one factor."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax

from gradkit import checks
from gradkit.engine.core import transformation
from gradkit.engine.mapping import apply_to_matrices
from gradkit.engine.planning import check_matrix, plan_stacks
from gradkit.engine.shape_factor import Scale, scale_by_shape
from gradkit.engine.shards import MatrixSharding, check_shard
from gradkit.leaves import Layout, axes_of, map_named
from gradkit.linalg.orthogonalize import check_options, orthogonalize


class Orthogonal(NamedTuple):
    """How matrices are orthogonalised: the arguments of `gk.linalg.orthogonalize`."""

    steps: int = 5
    coefficients: Any = "muon"
    method: Any = "newton_schulz"
    eps: Any = 1e-7
    dtype: Any = None

    @property
    def kernel(self) -> Callable[[jax.Array], jax.Array]:
        """The function of a batch of matrices."""
        return partial(orthogonalize, **self._asdict())

    @property
    def keeps_zeros(self) -> bool:
        """Whether rows and columns of zeros change nothing else: not known of a function of the user's."""
        return not callable(self.method)


def checked(ns_steps: Any, coefficients: Any, method: Any, eps: Any, ns_dtype: Any, shard: Any = None) -> Orthogonal:
    """The options of a method under the names that methods have for them, checked.

    >>> checked(5, "muon", "svd", 1e-7, None).method
    'svd'
    """
    checks.floating_dtype(ns_dtype=ns_dtype)
    steps = checks.integer("ns_steps", ns_steps, 1, maximum=checks.MOST_UNROLLED)
    check_options(steps=steps, coefficients=coefficients, method=method, eps=eps)
    check_shard(shard)
    return Orthogonal(steps, coefficients, method, eps, ns_dtype)


def orthogonal(
    name: str,
    how: Orthogonal,
    tree: Any,
    *,
    scale: Scale = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
    kernel: Callable[[jax.Array], jax.Array] | None = None,
) -> Any:
    """A tree whose leaves are matrices, orthogonalised matrix by matrix.

    Args:
      name: of the method, for messages.
      how: the options.
      tree: the leaves, all with inputs and outputs.
      scale: the factor of every matrix, as in `shape_factor`.
      layout: which axes are inputs, outputs and stacks.
      shard: over which devices the work is spread.
      kernel: another function of a batch of matrices (B, n, m), n <= m, which sees their own shape. Default None: that
        of the options.
    """
    pad = how.keeps_zeros and kernel is None
    plan = plan_stacks(tree, method=name, layout=layout, shard=shard, transpose=True, merge=pad)
    run = how.kernel if kernel is None else kernel
    return scale_by_shape(apply_to_matrices(plan, run, tree), plan.axes, plan.shapes, scale)


def orthogonal_link(
    name: str,
    how: Orthogonal,
    *,
    scale: Scale = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
    kernel: Callable[[jax.Array], jax.Array] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`orthogonal` as a link of a chain, of leaves that are all matrices.

    >>> import jax.numpy as jnp
    >>> tx = orthogonal_link("mine", Orthogonal(method="svd"))
    >>> tx.update(jnp.array([[0.0, 3.0], [2.0, 0.0]]), tx.init(jnp.ones((2, 2))))[0].round(3).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """

    def init(params: optax.Params) -> optax.EmptyState:
        map_named(lambda leaf, x: check_matrix(name, leaf, x.shape, axes_of(layout, leaf, x.shape)), params)
        return optax.EmptyState()

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        return orthogonal(name, how, updates, scale=scale, layout=layout, shard=shard, kernel=kernel), state

    return transformation(name, init, update)
