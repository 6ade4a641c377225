"""MoDo: weights of tasks by double sampling, so that their noise is that of two batches.

Equations: in the docstring of `modo`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.makers import weights_of_gramian
from gradkit.aggregation.preferences import dtype_of
from gradkit.catalogue import Paper, Tasks, register
from gradkit.engine.core import scalar
from gradkit.types import Scalar

PAPER = Paper(
    "Three-Way Trade-Off in Multi-Objective Learning: Optimization, Generalization and Conflict-Avoidance",
    "Chen et al.", 2023, "2305.20057",
)  # fmt: skip


class TaskWeightsState(NamedTuple):
    """The weights of the tasks, a point of the simplex."""

    weights: jax.Array

    exact_fields = ("weights",)  # learned by small steps


def project_to_simplex(x: jax.Array) -> jax.Array:
    """The nearest point with entries >= 0 that add up to 1.

    >>> project_to_simplex(jnp.array([0.5, 1.5, -3.0])).tolist()
    [0.0, 1.0, 0.0]
    """
    down = -jnp.sort(-x)
    excess = (jnp.cumsum(down) - 1) / jnp.arange(1, len(x) + 1, dtype=x.dtype)
    last = jnp.sum(down > excess, dtype=jnp.int32) - 1
    return jnp.maximum(x - excess[last], 0)


def cross_of(method: str, G: jax.Array, num_tasks: int) -> jax.Array:
    """The products of the gradients of the first batch with those of the second, of the Gramian of both."""
    if len(G) != 2 * num_tasks:
        raise ValueError(
            f"{method}: {len(G)} gradients came, and num_tasks={num_tasks} needs {2 * num_tasks}: those of all tasks "
            "on one half of the batch, then on the other; write a loss that returns "
            "jnp.concatenate([losses(params, half) for half in halves]), with the losses of "
            f"{num_tasks} task{'s' if num_tasks > 1 else ''} on each"
        )
    return G[:num_tasks, num_tasks:]


def modo(*, num_tasks: int, gamma: Scalar = 0.1, rho: Scalar = 0.1) -> optax.GradientTransformationExtraArgs:
    """Multi-objective gradient with double sampling: weights that go towards the shortest vector, without bias.

    The gradients of m tasks on two independent batches come in one after the other, 2 m in all, J_1 and J_2 in rows:

        A = J_1 J_2^T
        l <- projection to the simplex of  l - gamma (A l + rho l)           from l_i = 1 / m
        result = sum_i l_i (g_1i + g_2i) / 2

    A is an unbiased estimate of the Gramian of the mean gradients; that of one batch has the squares of its noise on
    the diagonal.

    Args:
      num_tasks: m, the number of tasks, >= 1: the state has a weight for each.
      gamma: step size of the weights, >= 0. Default 0.1 (torchjd).
      rho: regularisation of the weights, >= 0. Default 0.1 (torchjd).

    Returns:
      A transformation whose updates come in with a leading axis of length 2 m and leave without it; put it first in a
      chain. For a loop, a loss that returns `jnp.concatenate([losses(params, half) for half in halves])`. State: m
      numbers. Sharded gradients cost one all-reduce of 4 m^2 numbers.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, another number of gradients, leading
        axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = modo(num_tasks=2, gamma=0.5, rho=0.0)
      >>> g = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> u, state = tx.update(jnp.concatenate([g, g]), tx.init(g[0]))
      >>> state.weights.tolist(), u.tolist()  # 1/2 - 1/4 and 1/2 - 1, projected
      ([0.875, 0.125], [0.875, 0.25])

    Reference: Chen et al. Three-Way Trade-Off in Multi-Objective Learning: Optimization, Generalization and
    Conflict-Avoidance. 2023, arXiv 2305.20057. The paper takes the direction from a third batch; here it is the mean of
    the two that the weights are made of, so they are not independent of it.
    """
    num_tasks = checks.integer("num_tasks", num_tasks, 1)
    checks.real("gamma", gamma, "[0, inf)")
    checks.real("rho", rho, "[0, inf)")

    def init(params: Any) -> TaskWeightsState:
        return TaskWeightsState(jnp.full((num_tasks,), 1 / num_tasks, dtype_of(params)))

    def weigh(G: jax.Array, state: TaskWeightsState, **extra: Any) -> tuple[jax.Array, TaskWeightsState]:
        del extra
        A, lam = cross_of("modo", G, num_tasks), state.weights.astype(G.dtype)
        slope = jnp.dot(A, lam, precision="highest") + scalar(rho, lam) * lam
        lam = project_to_simplex(lam - scalar(gamma, lam) * slope)
        return jnp.concatenate([lam, lam]) / 2, TaskWeightsState(lam.astype(state.weights.dtype))

    return weights_of_gramian("modo", weigh, init=init)


register(
    modo,
    form="aggregator",
    paper=PAPER,
    collectives="gramian",
    golden=("estimators/modo",),
    example={"num_tasks": 3},
    tasks=Tasks(batches=2),
    notes="gradients of all tasks on two batches: 2 m in all",
)
