"""The last link of an optimizer: the learning rate, and the sign that turns ascent into descent.

u_t = -learning_rate(t) * d_t,      t = 0, 1, ...: the first update sees learning_rate(0)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.at_once import at_once
from gradkit.engine.core import at_count, counter, increment, once_per_dtype, scalar, times, transformation
from gradkit.leaves import Method
from gradkit.types import ScalarOrSchedule

RATE = "scale_by_learning_rate: learning_rate"


@at_once
def _ascent(rate: Any, updates: Any) -> Any:
    factor = once_per_dtype(lambda u: scalar(rate, u))
    return jax.tree.map(lambda u: times(factor(u), u), updates)


@at_once
def _descent(rate: Any, updates: Any) -> Any:
    if isinstance(rate, int | float):
        return _ascent(-rate, updates)
    # The sign of a traced rate, which is published too, would be a program of its own.
    return jax.tree.map(jnp.negative, _ascent(rate, updates))


class ScaleByLearningRateState(NamedTuple):
    """Number of updates made (None where the rate is no schedule), and the rate of the last one as a metric."""

    count: Any
    metrics: dict[str, jax.Array]


def scale_by_learning_rate(
    learning_rate: ScalarOrSchedule, *, flip_sign: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by the learning rate, negated for descent, and publishes the rate.

    Args:
      learning_rate: a number >= 0, or a schedule step -> value; schedule(0) is the rate of the first
        update.
      flip_sign: whether to negate, so that the result can be added to the parameters. Default True.

    Returns:
      A transformation. State: the metric `learning_rate` (float32), which `gk.diagnostics.metrics(state)`
      reads, and a counter where the rate is a schedule: who will go on from a number to a schedule starts with the
      schedule `lambda step: rate`, which counts. Elementwise: no collective.

    Raises:
      ValueError: a negative rate, or NaN.

    Example:
      >>> tx = scale_by_learning_rate(optax.linear_schedule(0.5, 0.0, 100))
      >>> g = {"w": jnp.array(1.0)}
      >>> updates, state = tx.update(g, tx.init(g))
      >>> float(updates["w"]), float(state.metrics["last_learning_rate"])
      (-0.5, 0.5)

    Reference: Robbins, Monro. A Stochastic Approximation Method. 1951. optax's link of this name keeps no
    rate, so its current value cannot be read from the state.
    """
    checks.switch(flip_sign=flip_sign)
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)

    def published(value: Any) -> dict[str, jax.Array]:
        # A copy: a rate that is an array stays the caller's when the state is donated.
        return {"last_learning_rate": jnp.array(value, jnp.float32, copy=True)}

    def init(params: optax.Params) -> ScaleByLearningRateState:
        del params
        count = counter(callable(learning_rate))
        return ScaleByLearningRateState(count, published(at_count(learning_rate, count, RATE)))

    def update(updates: Any, state: ScaleByLearningRateState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        rate = at_count(learning_rate, state.count, RATE)
        updates = (_descent if flip_sign else _ascent)(rate, updates)
        return updates, ScaleByLearningRateState(increment(state.count), published(rate))

    described = Method("scale_by_learning_rate", learning_rate)
    return transformation("scale_by_learning_rate", init, update, complex_leaves=True, described=described)


register(
    scale_by_learning_rate,
    form="primitive",
    paper=Paper("A Stochastic Approximation Method", "Robbins, Monro", 1951),
    example={"learning_rate": 1.0, "flip_sign": False},
)
