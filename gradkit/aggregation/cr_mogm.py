"""CR-MOGM: the weights of another aggregator, averaged over steps.

Equations: in the docstring of `cr_mogm`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.gramian import combine
from gradkit.aggregation.makers import after_finite, aggregator, number_of, weights_from
from gradkit.aggregation.preferences import check_count, check_vector, dtype_of, vector_of
from gradkit.aggregation.upgrad import upgrad
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar
from gradkit.types import Scalar

PAPER = Paper("On the Convergence of Stochastic Multi-Objective Gradient Manipulation and Beyond", "Zhou et al.", 2022)


class CrMogmState(NamedTuple):
    """Whether there are weights yet, the averaged weights, and the state of the other aggregator."""

    started: jax.Array
    weights: jax.Array
    inner: Any


def cr_mogm(
    weighting: optax.GradientTransformation, *, num_tasks: int, alpha: Scalar = 0.9, initial_weights: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Correlation-reduced gradient manipulation: weights that do not follow the noise of a single minibatch.

    With w the weights that another aggregator gives:

        l <- alpha l + (1 - alpha) w           l = w in the first step, unless `initial_weights` are given
        result = l_1 g_1 + ... + l_m g_m

    Args:
      weighting: the other aggregator, one whose result is a weighted sum with weights that follow from the Gramian or
        from the losses, such as `gk.aggregation.upgrad()` or `mgda()`.
      num_tasks: m, the number of tasks, >= 1: the state has a weight for each.
      alpha: weight of the weights before, in [0, 1]. Default 0.9 (torchjd).
      initial_weights: m finite numbers. Default None: the first weights.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; put it first in a
      chain. State: m numbers, and that of `weighting`. Moves between devices what `weighting` moves.

    Raises:
      ValueError: at construction, a hyperparameter outside its range, `weighting` that is no transformation; when
        called, one that has no weights, another number of gradients, leading axes that differ or are missing, gradients
        that do not match the parameters.

    Example:
      >>> tx = cr_mogm(upgrad(), num_tasks=2, initial_weights=[0.0, 1.0])
      >>> u = tx.update(jnp.eye(2), tx.init(jnp.zeros(2)))[0]  # those of the step are 1/2
      >>> [round(float(x), 4) for x in u]
      [0.05, 0.95]

    Reference: Zhou et al. On the Convergence of Stochastic Multi-Objective Gradient Manipulation and Beyond. 2022
    (NeurIPS; no arXiv id).
    """
    checks.transformation(weighting=weighting)
    num_tasks = checks.integer("num_tasks", num_tasks, 1)
    checks.real("alpha", alpha, "[0, 1]")
    check_vector("initial_weights", initial_weights)
    inner = optax.with_extra_args_support(weighting)

    def init(params: Any) -> CrMogmState:
        dtype, given = dtype_of(params), initial_weights is not None
        start = vector_of("cr_mogm", "initial_weights", initial_weights, num_tasks, dtype, 0.0)
        return CrMogmState(jnp.asarray(given), start, inner.init(params))

    def update(gradients: Any, state: CrMogmState, params: Any, **extra: Any) -> tuple[Any, CrMogmState]:
        del params
        check_count("cr_mogm", num_tasks, number_of(gradients))
        now, after = weights_from("cr_mogm", inner, gradients, state.inner, **extra)
        lam, a = state.weights, scalar(alpha, state.weights)
        now = now.astype(lam.dtype)
        lam = jnp.where(state.started, a * lam + (1 - a) * now, now)
        new = CrMogmState(jnp.ones((), bool), lam, after)
        return combine(gradients, lam), after_finite(now, new, state)

    return aggregator("cr_mogm", update, init=init)


register(
    cr_mogm,
    form="aggregator",
    paper=PAPER,
    collectives="gramian",
    golden=("estimators/cr_mogm",),
    example={"weighting": upgrad(), "num_tasks": 3},
    notes="around an aggregator of weights",
)
