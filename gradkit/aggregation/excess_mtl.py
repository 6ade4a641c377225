"""Excess-MTL: weights from how far every task is from its best, estimated by its preconditioned gradient.

Equations: in the docstring of `excess_mtl`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.gramian import combine
from gradkit.aggregation.makers import after_finite, aggregator
from gradkit.aggregation.preferences import check_count, dtype_of
from gradkit.catalogue import Paper, register
from gradkit.engine.core import abs_sq, increment, rows_of, scalar, wide_dtype, zeros
from gradkit.engine.lazy_gradients import stacked
from gradkit.types import Scalar

PAPER = Paper("Robust Multi-Task Learning with Excess Risks", "He et al.", 2024)
EPS = 1e-7


class ExcessMtlState(NamedTuple):
    """Number of steps, the weights, the excess risks that the later ones are relative to, and the sums of squares."""

    count: jax.Array
    weights: jax.Array
    baseline: jax.Array
    squares: Any

    exact_fields = ("weights",)


def excess_mtl(
    *, num_tasks: int, robust_step_size: Scalar = 1.0, n_warmup_steps: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Excess risks: tasks that are far from their best weigh more, and noise in a loss does not count.

    With the gradients J_i of the tasks, entry by entry:

        S_i <- S_i + J_i^2,    x_i = sum J_i^2 / sqrt(S_i + 1e-7)
        in the first n_warmup_steps:   w_i = 1 / m, and b_i is the mean of x_i; without any, b_i is the first x_i,
                                       and the first step takes x_i as it is
        x_i <- x_i / (b_i + 1e-7)
        w <- softmax(log w + robust_step_size x)
        result = w_1 g_1 + ... + w_m g_m

    Args:
      num_tasks: m, the number of tasks, >= 1.
      robust_step_size: >= 0; 0 keeps all weights equal. Default 1 (torchjd).
      n_warmup_steps: steps with equal weights at the beginning, >= 0. Default 0.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; put it first in a
      chain. State: m words PER PARAMETER, two numbers per task and a counter; all m gradients are in memory. Sharded
      gradients cost m sums.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, another number of gradients, leading
        axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = excess_mtl(num_tasks=2)
      >>> g = jnp.array([[4.0, 0.0], [0.0, 1.0]])
      >>> u, state = tx.update(g, tx.init(g[0]))
      >>> [round(float(w), 3) for w in state.weights]  # softmax(4, 1)
      [0.953, 0.047]

    Reference: He et al. Robust Multi-Task Learning with Excess Risks. 2024 (ICML; no arXiv id). Weights add up to 1, as
    in torchjd; the authors' code starts them at 1.
    """
    num_tasks = checks.integer("num_tasks", num_tasks, 1)
    checks.real("robust_step_size", robust_step_size, "[0, inf)")
    n_warmup_steps = checks.integer("n_warmup_steps", n_warmup_steps, 0)

    def init(params: Any) -> ExcessMtlState:
        dtype = dtype_of(params)
        weights, baseline = jnp.full((num_tasks,), 1 / num_tasks, dtype), jnp.zeros((num_tasks,), dtype)
        squares = jax.tree.map(lambda x: rows_of(x, num_tasks), zeros(params, real=True))
        return ExcessMtlState(jnp.zeros((), jnp.int32), weights, baseline, squares)

    def update(gradients: Any, state: ExcessMtlState, params: Any, **extra: Any) -> tuple[Any, ExcessMtlState]:
        del params, extra
        rows, w = stacked(gradients), state.weights
        check_count("excess_mtl", num_tasks, len(jax.tree.leaves(rows)[0]))
        new = jax.tree.map(lambda J: abs_sq(J.astype(wide_dtype(J.dtype))), rows)
        squares = jax.tree.map(jnp.add, state.squares, new)

        def risk(J: jax.Array, S: jax.Array) -> jax.Array:
            return jnp.sum(J / jnp.sqrt(S + scalar(EPS, S)), axis=tuple(range(1, J.ndim))).astype(w.dtype)

        parts = [risk(*pair) for pair in zip(*map(jax.tree.leaves, (new, squares)), strict=True)]
        x = jnp.sum(jnp.stack(parts), axis=0)
        first, warm = state.count == 0, state.count < n_warmup_steps
        if n_warmup_steps:
            baseline = jnp.where(warm, state.baseline + x / n_warmup_steps, state.baseline)
            excess = x / (baseline + EPS)
        else:
            baseline = jnp.where(first, x, state.baseline)
            excess = jnp.where(first, x, x / (baseline + EPS))
        moved = jax.nn.softmax(jnp.log(w) + scalar(robust_step_size, w) * excess)
        w = jnp.where(warm, w, moved)
        new = ExcessMtlState(increment(state.count), w, baseline, squares)
        return combine(rows, w), after_finite(x, new, state)

    return aggregator("excess_mtl", update, init=init)


register(
    excess_mtl,
    form="aggregator",
    paper=PAPER,
    words=3,
    collectives="norms",
    golden=("estimators/excess_mtl",),
    example={"num_tasks": 3},
    notes="state of one word per parameter and task",
)
