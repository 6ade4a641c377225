"""FAMO: weights with which all losses fall at the same rate, learned from the losses alone.

Equations: in the docstring of `famo`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.makers import weights_of_losses
from gradkit.aggregation.preferences import check_count, dtype_of
from gradkit.catalogue import Paper, register
from gradkit.engine.core import increment, inside
from gradkit.transforms import add_decayed_weights, scale_by_adam, scale_by_learning_rate
from gradkit.types import Scalar

PAPER = Paper("FAMO: Fast Adaptive Multitask Optimization", "Liu et al.", 2023, "2306.03792")
EPS = 1e-8


class FamoState(NamedTuple):
    """Number of steps, the logits of the weights, the losses of the last step, and the state of the optimizer."""

    count: jax.Array
    logits: jax.Array
    losses: jax.Array
    tx_state: Any

    exact_fields = ("logits", "losses")  # parameters, and what is read as a small difference


def famo(
    *,
    num_tasks: int,
    weight_learning_rate: Scalar = 0.025,
    weight_decay: Scalar = 1e-3,
    min_loss: Scalar = 0.0,
    weight_tx: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Fast adaptive multitask optimization: the logarithms of all losses fall alike, at the cost of one backward pass.

    With logits xi, from 0, and b = min_loss:

        z = softmax(xi),   c = 1 / sum_i z_i / (L_i - b + 1e-8)
        result = sum_i c z_i / (L_i - b + 1e-8) g_i
        after the step:   d_i = log(L_i - b + 1e-8) - log(L_i' - b + 1e-8)      L' the losses after it
        xi <- the step of Adam with L2 weight decay for the gradient z (d - z . d)

    Args:
      num_tasks: m, the number of tasks, >= 1: the state has numbers for each.
      weight_learning_rate: step size of xi, >= 0. Default 0.025 (authors' code).
      weight_decay: L2 decay of xi, >= 0: its product with xi is added to the gradient. Default 1e-3 (authors' code).
      min_loss: b, a number >= 0 below all losses. Default 0.
      weight_tx: an optimizer of xi in the place of Adam with decay. Default None.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; `update` needs
      `losses`, which every loop has. State: two numbers per task, a counter, and the state of the optimizer of xi. One
      backward pass; nothing moves between devices.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, no losses, another number of tasks,
        leading axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = famo(num_tasks=2)
      >>> u, state = tx.update(jnp.eye(2), tx.init(jnp.zeros(2)), losses=jnp.array([1.0, 3.0]))
      >>> [round(float(w), 4) for w in u]
      [0.75, 0.25]

    Reference: Liu et al. FAMO: Fast Adaptive Multitask Optimization. 2023, arXiv 2306.03792. The authors' code
    evaluates the losses of the same minibatch a second time, after the step. Here xi takes its step at the beginning
    of the next update, with the losses of the next minibatch, which are there anyway; `update(...,
    losses_after=...)` hands over those of the last minibatch at the new parameters, and is the authors' code.
    """
    num_tasks = checks.integer("num_tasks", num_tasks, 1)
    checks.real("weight_learning_rate", weight_learning_rate, "[0, inf)")
    checks.real("weight_decay", weight_decay, "[0, inf)")
    checks.real("min_loss", min_loss, "[0, inf)")
    default = optax.chain(
        add_decayed_weights(weight_decay), scale_by_adam(), scale_by_learning_rate(weight_learning_rate)
    )
    tx: Any = inside(default if weight_tx is None else weight_tx, "weight_tx")

    def init(params: Any) -> FamoState:
        xi, losses = (jnp.zeros((num_tasks,), dtype_of(params)) for _ in range(2))
        return FamoState(jnp.zeros((), jnp.int32), xi, losses, tx.init(xi))

    def weigh(losses: jax.Array, state: FamoState, **extra: Any) -> tuple[jax.Array, FamoState]:
        check_count("famo", num_tasks, len(losses))
        xi = state.logits
        L = losses.astype(xi.dtype)
        b = jnp.asarray(min_loss, L.dtype)
        now = jnp.asarray(extra["losses_after"], L.dtype) if "losses_after" in extra else L
        first = state.count == 0
        before = jnp.where(first, now, state.losses)
        d = jnp.log(before - b + EPS) - jnp.log(now - b + EPS)
        z = jax.nn.softmax(xi)
        step, tx_state = tx.update(z * (d - jnp.sum(z * d)), state.tx_state, xi)
        xi = jnp.where(first, xi, xi + step.astype(xi.dtype))
        tx_state = jax.tree.map(lambda old, new: jnp.where(first, old, new), state.tx_state, tx_state)
        shares = jax.nn.softmax(xi) / (L - b + EPS)
        return shares / jnp.sum(shares), FamoState(increment(state.count), xi, L, tx_state)

    return weights_of_losses("famo", weigh, init=init)


register(
    famo,
    form="aggregator",
    paper=PAPER,
    needs=("losses",),
    golden=("estimators/scalarizers",),
    example={"num_tasks": 3},
)
