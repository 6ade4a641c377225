"""SDMGrad: weights of tasks near a preferred direction, by double sampling.

Equations: in the docstring of `sdmgrad`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.makers import weights_of_gramian
from gradkit.aggregation.modo import TaskWeightsState, cross_of, project_to_simplex
from gradkit.aggregation.preferences import check_vector, dtype_of, vector_of
from gradkit.catalogue import Paper, Tasks, register
from gradkit.engine.core import scalar
from gradkit.types import Scalar

PAPER = Paper(
    "Direction-oriented Multi-objective Learning: Simple and Provable Stochastic Algorithms", "Xiao et al.", 2023,
    "2305.18409",
)  # fmt: skip


def sdmgrad(
    *,
    num_tasks: int,
    weight_learning_rate: Scalar = 10.0,
    momentum: Scalar = 0.5,
    iterations: int = 20,
    lambda_: Scalar = 0.3,
    pref_vector: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Stochastic direction-oriented multi-objective gradient: the shortest vector, regularised to a preferred one.

    The gradients of m tasks on two independent batches come in one after the other, 2 m in all, J_1 and J_2 in rows.
    With preferences p and the weights w of the last step, from 1 / m:

        A = J_1 J_2^T,   s = mean_i sqrt(max(A_ii, 0)),   a = A / (s^2 + 1e-8)
        iterations times:    v <- momentum v + a (w + lambda_ p)            v = a (w + lambda_ p) the first time
                         w <- projection to the simplex of  w - weight_learning_rate v
        l = (w + lambda_ p) / (1 + lambda_)
        result = sum_i l_i (g_1i + g_2i) / 2

    Args:
      num_tasks: m, the number of tasks, >= 1: the state has a weight for each.
      weight_learning_rate: step size of w, >= 0. Default 10 (authors' code).
      momentum: of w, in [0, 1). Default 0.5 (authors' code).
      iterations: steps of w in every step, >= 1. Default 20 (authors' code).
      lambda_: weight of the preferred direction, >= 0. Default 0.3 (authors' code).
      pref_vector: p, m finite numbers. Default 1 / m each.

    Returns:
      A transformation whose updates come in with a leading axis of length 2 m and leave without it; put it first in a
      chain. For a loop, a loss that returns `jnp.concatenate([losses(params, half) for half in halves])`. State: m
      numbers. Sharded gradients cost one all-reduce of 4 m^2 numbers.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, another number of gradients, leading
        axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = sdmgrad(num_tasks=2, lambda_=1.0)
      >>> g = jnp.array([[1.0, 0.0], [0.0, 9.0]])
      >>> u, state = tx.update(jnp.concatenate([g, g]), tx.init(g[0]))
      >>> state.weights.tolist(), u.tolist()  # half of (1, 0), and half of the mean
      ([1.0, 0.0], [0.75, 2.25])

    Reference: Xiao et al. Direction-oriented Multi-objective Learning: Simple and Provable Stochastic Algorithms. 2023,
    arXiv 2305.18409. The paper takes the direction from a third batch; here it is the mean of the two that the weights
    are made of.
    """
    num_tasks = checks.integer("num_tasks", num_tasks, 1)
    checks.real("weight_learning_rate", weight_learning_rate, "[0, inf)")
    checks.real("momentum", momentum, "[0, 1)")
    iterations = checks.integer("iterations", iterations, 1)
    checks.real("lambda_", lambda_, "[0, inf)")
    check_vector("pref_vector", pref_vector)

    def init(params: Any) -> TaskWeightsState:
        return TaskWeightsState(jnp.full((num_tasks,), 1 / num_tasks, dtype_of(params)))

    def weigh(G: jax.Array, state: TaskWeightsState, **extra: Any) -> tuple[jax.Array, TaskWeightsState]:
        del extra
        A = cross_of("sdmgrad", G, num_tasks)
        size = jnp.mean(jnp.sqrt(jnp.maximum(jnp.diagonal(A), 0)))
        a = A / (jnp.square(size) + scalar(1e-8, A))
        rate, heavy, near = (scalar(x, A) for x in (weight_learning_rate, momentum, lambda_))
        toward = near * vector_of("sdmgrad", "pref_vector", pref_vector, num_tasks, A.dtype)

        def step(_: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            w, v = carry
            v = heavy * v + jnp.dot(a, w + toward, precision="highest")
            return project_to_simplex(w - rate * v), v

        start = state.weights.astype(A.dtype)
        w, _ = jax.lax.fori_loop(0, iterations, step, (start, jnp.zeros_like(start)))
        lam = (w + toward) / (1 + near)
        return jnp.concatenate([lam, lam]) / 2, TaskWeightsState(w.astype(state.weights.dtype))

    return weights_of_gramian("sdmgrad", weigh, init=init)


register(
    sdmgrad,
    form="aggregator",
    paper=PAPER,
    collectives="gramian",
    golden=("estimators/sdmgrad",),
    example={"num_tasks": 3},
    tasks=Tasks(batches=2),
    notes="gradients of all tasks on two batches: 2 m in all",
)
