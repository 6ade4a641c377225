"""Task vectors, and ATM: rounds of tuning a model on every task and merging the task vectors."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import as_arrays, wide_dtype
from gradkit.engine.matching import check_match
from gradkit.parallel.compressors import Compressor, compressing, number_of_replicas
from gradkit.parallel.local_updates import local_updates
from gradkit.types import Scalar

PAPER = Paper("ATM: Improving Model Merging by Alternating Tuning and Merging", "Zhou et al.", 2024, "2411.03055")


def task_vector(base: Any, tuned: Any) -> Any:
    """The change by tuning, tuned - base, in float32 or wider.

    Args:
      base: parameters before.
      tuned: parameters after, a tree like it.

    Returns:
      A tree like them.

    Raises:
      ValueError: trees that differ.

    Example:
      >>> print(task_vector(jnp.array([1.0, 2.0]), jnp.array([1.5, 0.0])))
      [ 0.5 -2. ]

    Reference: Zhou et al. ATM: Improving Model Merging by Alternating Tuning and Merging. 2024, arXiv 2411.03055.
    """
    check_match("task_vector", tuned, base)
    base, tuned = as_arrays(base), as_arrays(tuned)
    return jax.tree.map(lambda b, t: t.astype(wide_dtype(b.dtype)) - b.astype(wide_dtype(b.dtype)), base, tuned)


def task_arithmetic(base: Any, task_vectors: Sequence[Any], scale: Scalar = 1.0) -> Any:
    """Adds task vectors to a model: base + scale sum_t tau_t. A negative scale forgets.

    Args:
      base: parameters.
      task_vectors: one tree or more, as of `task_vector`.
      scale: a number. Default 1. Of T vectors, 1/T is the mean of the tuned models.

    Returns:
      Parameters of the dtypes of `base`.

    Raises:
      ValueError: no task vector; trees that differ.

    Example:
      >>> base, vectors = jnp.array([1.0]), [jnp.array([2.0]), jnp.array([-1.0])]
      >>> print(task_arithmetic(base, vectors, 0.5))
      [1.5]

    Reference: Zhou et al. ATM: Improving Model Merging by Alternating Tuning and Merging. 2024, arXiv 2411.03055; from
    Ilharco et al. Editing Models with Task Arithmetic. 2022, arXiv 2212.04089.
    """
    if not len(task_vectors):
        raise ValueError("task_vectors must be one tree or more, got none; write [task_vector(base, tuned)]")
    checks.real("scale", scale)
    for vector in task_vectors:
        check_match("task_arithmetic", vector, base)
    base = as_arrays(base)

    def leaf(b: jax.Array, *taus: jax.Array) -> jax.Array:
        wide = wide_dtype(b.dtype)
        total = sum(jnp.asarray(tau).astype(wide) for tau in taus)
        return (b.astype(wide) + jnp.asarray(scale).astype(wide) * total).astype(b.dtype)

    return jax.tree.map(leaf, base, *task_vectors)


def alternating_tuning_merging(
    inner: optax.GradientTransformation,
    *,
    sync_every: Any = 100,
    scale: Scalar = 1.0,
    combine: optax.GradientTransformation | None = None,
    axis_name: Any = "replica",
) -> optax.GradientTransformationExtraArgs:
    """Tunes one model on several tasks at once, one per replica, and merges by task vectors after every round.

    Equations of a round, for T tasks, one per replica, with K = sync_every:

        x_t    = theta after K steps of the inner optimizer on task t, from a fresh state
        theta <- theta + (scale / T) sum_t (x_t - theta)

    One round is task arithmetic. With one full-batch step of gradient descent per round it is gradient descent on the
    mean loss of the tasks, with the learning rate times `scale`. It is `local_updates` with `outer=optax.sgd(scale)`
    and a fresh inner state in every round; see there how to run it, and for `sync`. The index of the replica,
    `jax.lax.axis_index`, is that of its task.

    Args:
      inner: the transformation that tunes.
      sync_every: K, the steps of a round, as in `local_updates`; the paper has one epoch. Default 100.
      scale: of the mean task vector, >= 0. Default 1, the mean of the tuned models; T is the sum of task arithmetic.
      combine: an aggregator of gk.aggregation in place of the mean of task vectors; it gets theta - x_t as gradients:
        `gk.aggregation.upgrad()`. Default None: the mean.
      axis_name: name of the axis of the tasks. Default "replica".

    Returns:
      A transformation that needs `params`. State: 1 word per parameter (theta) and the inner state, once per replica.
      Collectives: one all-reduce of the parameters per round, in float32; with `combine` an all-gather.

    Raises:
      ValueError: a hyperparameter outside its range; leaves of integers; no axis of this name (at a sync step).

    Example:
      >>> tx = alternating_tuning_merging(optax.sgd(1.0), sync_every=1, scale=0.5)
      >>> x, g = jnp.array([5.0, 5.0]), jnp.array([0.0, 2.0])  # two tasks
      >>> updates, _ = jax.vmap(tx.update, axis_name="replica")(g, jax.vmap(tx.init)(x), x)
      >>> print(updates)
      [-0.5 -0.5]

    Reference: Zhou et al. ATM: Improving Model Merging by Alternating Tuning and Merging. 2024, arXiv 2411.03055. The
    scale multiplies the mean of task vectors, as in the paper's iterative form; that of task arithmetic their sum.
    """
    checks.real("scale", scale, "[0, inf)")
    exchange = None if combine is None else _combined(combine, axis_name)
    base = local_updates(inner, sync_every=sync_every, axis_name=axis_name, outer=optax.sgd(scale), exchange=exchange)

    advance: Callable[..., tuple[Any, Any]] = base.update

    def update(updates: Any, state: Any, params: Any = None, *, sync: Any = None, **extra: Any) -> tuple[Any, Any]:
        u, new = advance(updates, state, params, sync=sync, **extra)
        ended = new.count >= state.next_sync if sync is None else sync
        if isinstance(ended, bool | np.bool_) and not ended:
            return u, new
        return u, _afresh(ended, new, params)

    def synchronize(params: Any, state: Any) -> tuple[Any, Any]:
        x, new = base.update.synchronize(params, state)  # pyright: ignore[reportFunctionMemberAccess]
        return x, _afresh(True, new, x)

    def _afresh(ended: Any, state: Any, params: Any) -> Any:
        """The state, with a fresh inner state where a new round starts."""
        like = jax.tree.map(lambda s, x: s.astype(jnp.result_type(x)), state.start, params)
        fresh = optax.with_extra_args_support(inner).init(like)
        kept = jax.tree.map(lambda new, old: jnp.where(ended, new.astype(old.dtype), old), fresh, state.inner)
        return state._replace(inner=kept)

    update.synchronize = synchronize  # pyright: ignore[reportFunctionMemberAccess]
    return optax.GradientTransformationExtraArgs(base.init, update)


def _combined(aggregator: optax.GradientTransformation, axis_name: Any) -> optax.GradientTransformationExtraArgs:
    """The exchange that all-gathers the changes of all replicas, and combines them on every replica."""
    checks.transformation(combine=aggregator)
    tx = optax.with_extra_args_support(aggregator)

    def exchange(tree: Any, state: Any, axis_name: Any, *, key: Any = None) -> tuple[Any, Any, Any]:
        number_of_replicas("alternating_tuning_merging", axis_name)
        extra = {} if key is None else {"key": key}
        one, new = tx.update(jax.lax.all_gather(tree, axis_name), state, tree, **extra)
        return one, tree, new

    return compressing("alternating_tuning_merging", Compressor(tx.init, exchange), axis_name)


register(task_vector, form="function", paper=PAPER, example={"base": 1.0, "tuned": 2.0})
register(task_arithmetic, form="function", paper=PAPER, example={"base": 1.0, "task_vectors": (2.0,)})
register(
    alternating_tuning_merging,
    form="strategy",
    paper=PAPER,
    words=1,
    collectives="replicas",
    example={"sync_every": 2},
    notes="one task per replica",
)
