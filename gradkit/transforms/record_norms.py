"""The norm of the gradient of every step of a run, for schedules that are refined from it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import increment, transformation, wide_dtype
from gradkit.engine.norms import global_norm, global_sums

PAPER = Paper(
    "When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement", "Defazio et al.", 2023, "2310.07831"
)


class RecordNormsState(NamedTuple):
    """The number of updates, and the norms so far; 0 for steps that have not been made."""

    count: jax.Array
    norms: jax.Array


def record_norms(total_steps: int, *, ord: int = 2) -> optax.GradientTransformationExtraArgs:
    """Records the norm of the updates of every step, and passes them on unchanged.

    Equations:

        norms_t = (sum over all entries of |g|^ord)^(1 / ord),   ord 1 or 2,   t = 0, 1, ..., total_steps - 1

    As the first link of a chain it records gradients, after a clip clipped gradients. Read the norms with
    `gk.find(state, "record_norms/norms")`, for `gk.schedules.refined_schedule`.

    Args:
      total_steps: number of norms that are kept, >= 1; those of later steps are dropped.
      ord: 2 (default) for the refinement of SGD, 1 for that of Adam and its like.

    Returns:
      A transformation. State: `total_steps` numbers, in float32 or wider. Collectives: one all-reduce of a scalar where
      leaves are sharded.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> tx = record_norms(3)
      >>> state = tx.init(jnp.zeros(2))
      >>> for scale in (1.0, 2.0):
      ...     g, state = tx.update(jnp.array([3.0, 4.0]) * scale, state)
      >>> state.norms.round(4).tolist(), g.tolist()
      ([5.0, 10.0, 0.0], [6.0, 8.0])

    Reference: Defazio et al. When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement. 2023, arXiv
    2310.07831.
    """
    total_steps = checks.integer("total_steps", total_steps, 1)
    ord = checks.integer("ord", ord, 1, maximum=2)

    def init(params: Any) -> RecordNormsState:
        dtypes = [jnp.finfo(wide_dtype(x.dtype)).dtype for x in jax.tree.leaves(params)]
        widest = max(dtypes, key=lambda d: d.itemsize, default=jnp.dtype(jnp.float32))
        return RecordNormsState(jnp.zeros((), jnp.int32), jnp.zeros(total_steps, widest))

    def update(updates: Any, state: RecordNormsState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        norm = global_norm(updates) if ord == 2 else global_sums(jax.tree.map(jnp.abs, updates))[0]
        norms = state.norms.at[state.count].set(norm.astype(state.norms.dtype), mode="drop")
        return updates, RecordNormsState(increment(state.count), norms)

    return transformation("record_norms", init, update, complex_leaves=True)


register(record_norms, form="primitive", paper=PAPER, collectives="norms", example={"total_steps": 8})
