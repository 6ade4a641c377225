"""GradNorm: weights of tasks with which their gradients have norms as their rates of training ask.

Equations: in the docstring of `gradnorm`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from gradkit import checks
from gradkit.aggregation.gramian import combine
from gradkit.aggregation.makers import after_finite, aggregator, number_of
from gradkit.aggregation.preferences import check_count, check_vector, dtype_of, vector_of
from gradkit.catalogue import Paper, register
from gradkit.engine.core import abs_sq, inside, need, scalar, wide_dtype
from gradkit.engine.lazy_gradients import LazyGradients, fold
from gradkit.leaves import check_mask, check_mask_form, resolve_mask
from gradkit.types import DTypeLike, Mask, PyTree, Scalar

PAPER = Paper(
    "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks", "Chen et al.", 2018,
    "1711.02257",
)  # fmt: skip


class GradNormState(NamedTuple):
    """Whether there was a step, the weights, the losses of the first step, and the state of the weights' optimizer."""

    started: jax.Array
    weights: jax.Array
    initial_losses: jax.Array
    tx_state: Any

    exact_fields = ("weights", "initial_losses")


def norms_of(gradients: PyTree, mask: Mask, dtype: DTypeLike) -> jax.Array:
    """The norms of all gradients over the leaves of a mask, without all of them in memory."""

    def add(found: jax.Array, part: Any, numbers: jax.Array) -> jax.Array:
        def leaf(x: jax.Array, used: bool) -> jax.Array:
            wide = abs_sq(x.astype(wide_dtype(x.dtype))) if used else jnp.zeros((len(x),), dtype)
            return jnp.sum(wide, axis=tuple(range(1, wide.ndim))).astype(dtype)

        squares = jax.tree.leaves(jax.tree.map(leaf, part, mask))
        return found.at[numbers].set(jnp.sum(jnp.stack(squares), axis=0))

    return jnp.sqrt(fold(gradients, add, jnp.zeros((number_of(gradients),), dtype)))


def gradnorm(
    *,
    num_tasks: int,
    alpha: Scalar = 1.5,
    weight_learning_rate: Scalar = 0.025,
    weight_tx: optax.GradientTransformation | None = None,
    mask: Mask | None = None,
    initial_losses: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient normalization: tasks that train slowly get larger gradients.

    With weights w, from 1, the losses L_i, and n_i the norm of g_i over the leaves of `mask`, in every step:

        G_i = w_i n_i,   Gbar = mean_i G_i,   r_i = (L_i / L_i(first)) / mean_j (L_j / L_j(first))
        target_i = Gbar r_i^alpha, a constant in the derivative of  sum_i |G_i - target_i|
        result = w_1 g_1 + ... + w_m g_m,                over all leaves
        w <- w - weight_learning_rate sign(G_i - target_i) n_i,   then   w <- m w / sum(w)

    Args:
      num_tasks: m, the number of tasks, >= 1: the state has two numbers for each.
      alpha: how much the rates of training count, >= 0; 0 makes all norms equal. Default 1.5 (paper: 1.5 for tasks that
        differ much, 0.12 for similar ones).
      weight_learning_rate: step size of w, >= 0. Default 0.025 (paper).
      weight_tx: an optimizer of w in the place of SGD, such as optax.adam(0.025). Default None.
      mask: the leaves whose norms count, as the last layer that all tasks share: a selector, a tree of booleans, a
        function params -> booleans. Default None: all.
      initial_losses: m numbers > 0, such as log(classes) for a classification. Default None: the losses of the first
        step.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; `update` needs
      `losses`, which every loop has. State: 2 m numbers and the state of `weight_tx`. Sharded gradients cost m sums.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, no losses, another number of tasks,
        leading axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = gradnorm(num_tasks=2, alpha=0.0, weight_learning_rate=0.1)
      >>> g = jnp.array([[1.0, 0.0], [0.0, 3.0]])
      >>> u, state = tx.update(g, tx.init(g[0]), losses=jnp.array([1.0, 1.0]))
      >>> u.tolist(), [round(float(w), 4) for w in state.weights]  # 1 + 0.1 and 1 - 0.3, times 2 / 1.8
      ([1.0, 3.0], [1.2222, 0.7778])

    Reference: Chen et al. GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks.
    2018, arXiv 1711.02257, Algorithm 1. LibMTL learns the logits of a softmax, from the second epoch on; SamsungLabs'
    code takes the derivative of the renormalisation too; neither is the paper. A first loss that is not positive counts
    as one that has not changed; weights whose sum is not positive begin again at 1.
    """
    num_tasks = checks.integer("num_tasks", num_tasks, 1)
    checks.real("alpha", alpha, "[0, inf)")
    checks.real("weight_learning_rate", weight_learning_rate, "[0, inf)")
    check_vector("initial_losses", initial_losses)
    if (
        initial_losses is not None
        and not isinstance(initial_losses, Tracer)
        and (np.asarray(initial_losses) <= 0).any()
    ):
        raise ValueError(f"initial_losses must be numbers > 0, one per task, got {initial_losses!r}")
    tx: Any = inside(optax.sgd(weight_learning_rate) if weight_tx is None else weight_tx, "weight_tx")
    check_mask_form(mask=mask)

    def init(params: Any) -> GradNormState:
        check_mask(mask, params, method="gradnorm", argument="mask", instead="mask=None")
        dtype = dtype_of(params)
        w = jnp.ones((num_tasks,), dtype)
        first = vector_of("gradnorm", "initial_losses", initial_losses, num_tasks, dtype, 0.0)
        return GradNormState(jnp.asarray(initial_losses is not None), w, first, tx.init(w))

    def update(gradients: Any, state: GradNormState, params: Any, **extra: Any) -> tuple[Any, GradNormState]:
        w, lazy = state.weights, isinstance(gradients, LazyGradients)
        losses = gradients.losses if lazy else jnp.asarray(need("gradnorm", extra, "losses"))
        check_count("gradnorm", num_tasks, number_of(gradients))
        L = losses.astype(w.dtype)
        like = params if params is not None else gradients.like if lazy else jax.tree.map(lambda x: x[0], gradients)
        n = norms_of(gradients, resolve_mask(mask, like, method="gradnorm"), w.dtype)
        first = jnp.where(state.started, state.initial_losses, L)
        fallen = jnp.where(first > 0, L / jnp.where(first > 0, first, jnp.ones_like(first)), jnp.ones_like(L))
        rates = fallen / jnp.mean(fallen)
        G = w * n
        target = jnp.mean(G) * rates ** scalar(alpha, rates)
        step, tx_state = tx.update(jnp.sign(G - target) * n, state.tx_state, w)
        after = w + step
        total = jnp.sum(after)
        after = jnp.where(total > 0, num_tasks * after / jnp.where(total > 0, total, 1), jnp.ones_like(after))
        new = GradNormState(jnp.ones((), bool), after.astype(w.dtype), first, tx_state)
        return combine(gradients, w), after_finite(jnp.stack([L, n.astype(L.dtype)]), new, state)

    return aggregator("gradnorm", update, init=init)


register(
    gradnorm,
    form="aggregator",
    paper=PAPER,
    needs=("losses",),
    collectives="norms",
    example={"num_tasks": 3},
)
