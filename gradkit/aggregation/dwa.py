"""Dynamic weight average: tasks whose loss falls slowly weigh more.

Equations: in the docstring of `dwa`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.makers import weights_of_losses
from gradkit.aggregation.preferences import check_count, dtype_of
from gradkit.catalogue import Paper, register
from gradkit.engine.core import increment
from gradkit.types import Scalar

PAPER = Paper("End-to-End Multi-Task Learning with Attention", "Liu et al.", 2018, "1803.10704")


class DwaState(NamedTuple):
    """Number of steps, the sum of the losses of this epoch, and the means of the last two."""

    count: jax.Array
    total: jax.Array
    last: jax.Array
    before: jax.Array


def dwa(
    *, num_tasks: int, temperature: Scalar = 2.0, steps_per_epoch: int = 100
) -> optax.GradientTransformationExtraArgs:
    """Dynamic weight average: weights from how much every loss fell from one epoch to the next.

    With L_i(e) the mean loss of task i over epoch e = 1, 2, ...:

        r_i = L_i(e - 1) / L_i(e - 2),    w = m softmax(r / temperature);      w_i = 1 for e = 1, 2
        result = w_1 g_1 + ... + w_m g_m

    Args:
      num_tasks: m, the number of tasks, >= 1: the state has three numbers for each.
      temperature: > 0; large ones make all weights equal. Default 2 (paper).
      steps_per_epoch: steps over which losses are averaged, >= 1. Default 100; the paper takes an epoch.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; `update` needs
      `losses`, which every loop has; they should be positive. State: three numbers per task and a counter. One
      backward pass; nothing moves between devices.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, no losses, another number of tasks,
        leading axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = dwa(num_tasks=2, steps_per_epoch=1)
      >>> state = tx.init(jnp.zeros(2))
      >>> for losses in ([4.0, 4.0], [1.0, 4.0], [1.0, 4.0]):
      ...     u, state = tx.update(jnp.eye(2), state, losses=jnp.array(losses))
      >>> [round(float(w), 3) for w in u]  # 2 softmax(1/8, 1/2)
      [0.815, 1.185]

    Reference: Liu et al. End-to-End Multi-Task Learning with Attention. 2018, arXiv 1803.10704.
    """
    num_tasks = checks.integer("num_tasks", num_tasks, 1)
    checks.real("temperature", temperature, "(0, inf)")
    steps_per_epoch = checks.integer("steps_per_epoch", steps_per_epoch, 1)

    def init(params: Any) -> DwaState:
        total, last, before = (jnp.zeros((num_tasks,), dtype_of(params)) for _ in range(3))
        return DwaState(jnp.zeros((), jnp.int32), total, last, before)

    def weigh(losses: jax.Array, state: DwaState, **extra: Any) -> tuple[jax.Array, DwaState]:
        del extra
        check_count("dwa", num_tasks, len(losses))
        L = losses.astype(state.total.dtype)
        known = state.count >= 2 * steps_per_epoch
        ratio = state.last / jnp.where(known & (state.before != 0), state.before, jnp.ones_like(L))
        weights = num_tasks * jax.nn.softmax(ratio / jnp.asarray(temperature, L.dtype))
        count, total = increment(state.count), state.total + L
        ends = count % steps_per_epoch == 0
        after = DwaState(
            count,
            jnp.where(ends, jnp.zeros_like(total), total),
            jnp.where(ends, total / steps_per_epoch, state.last),
            jnp.where(ends, state.last, state.before),
        )
        return jnp.where(known, weights, jnp.ones_like(weights)), after

    return weights_of_losses("dwa", weigh, init=init)


register(
    dwa,
    form="aggregator",
    paper=PAPER,
    needs=("losses",),
    golden=("estimators/scalarizers",),
    example={"num_tasks": 3, "steps_per_epoch": 1},
)
