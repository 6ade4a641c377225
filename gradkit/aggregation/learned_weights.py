"""Weights of tasks that are learned along with the model: from uncertainty, and IMTL-L.

With one number s_i per task and a function v of losses and s:

    result = sum_i (dv / dL_i) g_i        at s_t
    s_{t+1} = s_t + the step of an optimizer for dv / ds

    v = sum_i (exp(-s_i) L_i + s_i) / 2       s_i = log sigma_i^2          uncertainty_weighting
    v = sum_i (exp(s_i) L_i - s_i)                                         imtl_l
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.makers import weights_of_losses
from gradkit.aggregation.preferences import check_count, dtype_of
from gradkit.catalogue import Paper, register
from gradkit.engine.core import inside
from gradkit.types import Scalar

UNCERTAINTY = Paper(
    "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics", "Kendall et al.", 2017,
    "1705.07115",
)  # fmt: skip
IMTL = Paper("Towards Impartial Multi-task Learning", "Liu et al.", 2021)


class LearnedWeightsState(NamedTuple):
    """One number per task, and the state of the optimizer that learns them."""

    learned: jax.Array
    tx_state: Any

    exact_fields = ("learned",)  # parameters, which gk.precision(state=...) must not round


def uncertainty_value(L: jax.Array, s: jax.Array) -> jax.Array:
    """The losses over their variances exp(s), and the logarithms of these."""
    return jnp.sum(jnp.exp(-s) * L + s) / 2


def imtl_l_value(L: jax.Array, s: jax.Array) -> jax.Array:
    """The losses on the scale exp(s), less the logarithm of that."""
    return jnp.sum(jnp.exp(s) * L - s)


def _learned(
    method: str, value: Callable[[jax.Array, jax.Array], jax.Array], num_tasks: int, learning_rate: Any, weight_tx: Any
) -> optax.GradientTransformationExtraArgs:
    num_tasks = checks.integer("num_tasks", num_tasks, 1)
    checks.real("weight_learning_rate", learning_rate, "[0, inf)")
    tx: Any = inside(optax.sgd(learning_rate) if weight_tx is None else weight_tx, "weight_tx")

    def init(params: Any) -> LearnedWeightsState:
        s = jnp.zeros((num_tasks,), dtype_of(params))
        return LearnedWeightsState(s, tx.init(s))

    def weigh(losses: jax.Array, state: LearnedWeightsState, **extra: Any) -> tuple[jax.Array, LearnedWeightsState]:
        del extra
        check_count(method, num_tasks, len(losses))
        s = state.learned
        weights, slope = jax.grad(value, (0, 1))(losses.astype(s.dtype), s)
        step, tx_state = tx.update(slope, state.tx_state, s)
        return weights, LearnedWeightsState(s + step.astype(s.dtype), tx_state)

    return weights_of_losses(method, weigh, init=init)


def uncertainty_weighting(
    *, num_tasks: int, weight_learning_rate: Scalar = 0.025, weight_tx: optax.GradientTransformation | None = None
) -> optax.GradientTransformationExtraArgs:
    """Weights from uncertainty: every task has a variance that is learned, and loud tasks get a large one.

        result = sum_i exp(-s_i) / 2 g_i
        s_i <- s_i - weight_learning_rate (1 - exp(-s_i) L_i) / 2        s_i = log sigma_i^2, from 0

    At rest exp(s_i) = L_i: the gradient is that of sum_i log(L_i) / 2.

    Args:
      num_tasks: m, the number of tasks, >= 1: the state has a number for each.
      weight_learning_rate: step size of s, >= 0. Default 0.025.
      weight_tx: an optimizer of s in the place of SGD, such as optax.adam(0.025). Default None.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; `update` needs
      `losses`, which every loop has. State: m numbers and the state of `weight_tx`. One backward pass; nothing moves
      between devices.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, no losses, another number of tasks,
        leading axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = uncertainty_weighting(num_tasks=2)
      >>> print(tx.update(jnp.eye(2), tx.init(jnp.zeros(2)), losses=jnp.array([1.0, 4.0]))[0])
      [0.5 0.5]

    Reference: Kendall et al. Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics.
    2017, arXiv 1705.07115. In the paper s are parameters of the model under its optimizer; here they are state with an
    optimizer of their own, which `weight_tx` makes the same.
    """
    return _learned("uncertainty_weighting", uncertainty_value, num_tasks, weight_learning_rate, weight_tx)


def imtl_l(
    *, num_tasks: int, weight_learning_rate: Scalar = 0.025, weight_tx: optax.GradientTransformation | None = None
) -> optax.GradientTransformationExtraArgs:
    """Impartial multi-task learning by losses: scales are learned with which all losses are as large.

        result = sum_i exp(s_i) g_i
        s_i <- s_i - weight_learning_rate (exp(s_i) L_i - 1)        from 0

    At rest exp(s_i) L_i = 1: the gradient is that of sum_i log L_i.

    Args:
      num_tasks: m, the number of tasks, >= 1: the state has a number for each.
      weight_learning_rate: step size of s, >= 0. Default 0.025.
      weight_tx: an optimizer of s in the place of SGD, such as optax.adam(0.025). Default None.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; `update` needs
      `losses`, which every loop has. State: m numbers and the state of `weight_tx`. One backward pass; nothing moves
      between devices.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, no losses, another number of tasks,
        leading axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = imtl_l(num_tasks=2, weight_learning_rate=0.1)
      >>> u, state = tx.update(jnp.eye(2), tx.init(jnp.zeros(2)), losses=jnp.array([1.0, 4.0]))
      >>> u.tolist(), [round(float(s), 4) for s in state.learned]
      ([1.0, 1.0], [0.0, -0.3])

    Reference: Liu et al. Towards Impartial Multi-task Learning. 2021 (ICLR; no arXiv id). In the paper s are parameters
    of the model under its optimizer; here they are state with an optimizer of their own.
    """
    return _learned("imtl_l", imtl_l_value, num_tasks, weight_learning_rate, weight_tx)


for _function, _paper in ((uncertainty_weighting, UNCERTAINTY), (imtl_l, IMTL)):
    register(
        _function,
        form="aggregator",
        paper=_paper,
        needs=("losses",),
        golden=("estimators/scalarizers",),
        example={"num_tasks": 3},
    )
