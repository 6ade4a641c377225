"""Schedule-free learning around any optimizer without momentum: no schedule that must know the last step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import at_count, divide, increment
from gradkit.transforms.evaluation import eval_params
from gradkit.transforms.interpolated_averaging import InterpolatedAveragingState, interpolate
from gradkit.types import DTypeLike, PyTree, Scalar, ScalarOrSchedule

PAPER = Paper("The Road Less Scheduled", "Defazio et al.", 2024, "2405.15682")


def shares(learning_rate: Any, weight_lr_power: Any, weight_power: Any) -> tuple[Any, Any]:
    """The function of the weights c_t, and the start of its state: the sum of w_t and the largest learning rate."""
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    checks.real("weight_lr_power", weight_lr_power, "[0, inf)")
    checks.real("weight_power", weight_power, "[0, inf)")

    def first(dtype: Any) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros((), dtype), jnp.zeros((), dtype)

    def share(sums: tuple[jax.Array, jax.Array], count: jax.Array) -> tuple[jax.Array, Any]:
        total, largest = sums
        rate = jnp.asarray(at_count(learning_rate, count, "schedule_free: learning_rate")).astype(total.dtype)
        largest = jnp.maximum(largest, rate)
        by_step = jnp.power(increment(count).astype(total.dtype), jnp.asarray(weight_power).astype(total.dtype))
        by_rate = jnp.power(largest, jnp.asarray(weight_lr_power).astype(total.dtype))
        weight = by_step * by_rate
        total = total + weight
        return divide(weight, total), (total, largest)

    return share, first


def warmed(learning_rate: Any, warmup_steps: int) -> Any:
    """gamma_t with a warm-up: the first step has learning_rate / warmup_steps, not 0."""
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    warmup_steps = checks.integer("warmup_steps", warmup_steps)
    if warmup_steps == 0:
        return learning_rate

    def rate(count: jax.Array) -> jax.Array:
        t = increment(count).astype(jnp.result_type(float))
        own = jnp.asarray(at_count(learning_rate, count, "learning_rate"))
        return own * jnp.minimum(t / warmup_steps, 1).astype(own.dtype)

    return rate


def schedule_free(
    inner: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    weight_lr_power: Scalar = 2.0,
    weight_power: Scalar = 0.0,
    state_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Any optimizer without momentum, schedule-free.

    Equations, with the parameters y_t, where the gradient is taken, and the inner update u_t with the learning rate
    gamma_t:

        z_{t+1} = z_t + u_t
        w_t = t^weight_power max(gamma_1, ..., gamma_t)^weight_lr_power
        c_t = w_t / (w_1 + ... + w_t)                           0 where the sum is 0
        x_{t+1} = (1 - c_t) x_t + c_t z_{t+1}                   the average: the evaluation parameters
        y_{t+1} = b1 x_{t+1} + (1 - b1) z_{t+1}

    It must be the outermost transformation: a clip or a decay after it would break the sequences. Running statistics of
    a model (BatchNorm) belong to y: compute them again at x before an evaluation (`gk.training.statistics_at`).

    Args:
      inner: an optimizer without momentum, whose updates contain the learning rate already.
      learning_rate: the same number or schedule as that of `inner`, >= 0, for the weights.
      b1: weight of the average in the point of the gradient, in [0, 1]. Default 0.9 (paper). With the number 0 the
        gradient is taken at z, and the state has x instead of z.
      weight_lr_power: power of the largest learning rate in the weights, >= 0. Default 2 (official code).
      weight_power: power of the step in the weights, >= 0. Default 0 (official code).
      state_dtype: dtype in which z is kept. Default: float32, or the parameters' where that is wider.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter, numbers, and the inner state. Elementwise: no
      collective.

    Raises:
      ValueError: an argument outside its range; at `update`, `params` missing.

    Example:
      >>> tx, y = schedule_free(optax.sgd(0.5), 0.5), jnp.array(1.0)
      >>> u, state = tx.update(y, tx.init(y), y)
      >>> (y + u).item(), schedule_free_eval_params(state, y + u).item()  # c_1 = 1: all three are the same
      (0.5, 0.5)

    Reference: Defazio et al. The Road Less Scheduled. 2024, arXiv 2405.15682. `optax.contrib.schedule_free` reads the
    learning rate of the next step for the weights, divides by b1, and sums the weights in the lowest dtype of the
    parameters.
    """
    share, first = shares(learning_rate, weight_lr_power, weight_power)
    return interpolate("schedule_free", inner, share, first, b1, state_dtype=state_dtype)


def schedule_free_eval_params(state: ScalarOrSchedule, params: PyTree) -> Any:
    """The average x of a schedule-free method, found in the state of any chain or wrapper.

    Args:
      state: of a transformation with a schedule-free method in it.
      params: the current parameters y.

    Returns:
      x, in the parameters' dtypes. `gk.eval_params` gives the same.

    Raises:
      ValueError: the state has no schedule-free method.

    Example:
      >>> tx, y = optax.chain(optax.clip(1.0), schedule_free(optax.sgd(0.5), 0.5)), jnp.array(1.0)
      >>> schedule_free_eval_params(tx.init(y), y).item()
      1.0

    Reference: Defazio et al. The Road Less Scheduled. 2024, arXiv 2405.15682.
    """
    checks.arrays(params=params)
    known = (InterpolatedAveragingState, optax.contrib.ScheduleFreeState)
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, known) or hasattr(node, "decoded"))
    if not any(isinstance(node, known) or hasattr(node, "decoded") for node in nodes):
        raise ValueError(
            "schedule_free_eval_params: the state has no schedule-free method; write gk.eval_params(state, params), "
            "which gives the parameters where there is no other point"
        )
    return eval_params(state, params)


register(
    schedule_free,
    form="wrapper",
    paper=PAPER,
    words=1,
    golden=("step_size/schedule_free_sgd",),
    example={"learning_rate": 0.1},
    notes="read with gk.eval_params",
)
