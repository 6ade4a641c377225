"""Weights that do not look at the gradients: the mean, the sum, weights of one's own, and random ones.

w_1 g_1 + ... + w_m g_m        w_i = 1 / m;   1;   given;   softmax(z)_i with z standard normal in every step
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit.aggregation.makers import fixed_weights
from gradkit.aggregation.preferences import check_vector, vector_of
from gradkit.catalogue import Paper, Tasks, register
from gradkit.engine.keys import check_key, first_key, needed_key
from gradkit.types import Key

PAPER = Paper("Reasonable Effectiveness of Random Weighting", "Lin et al.", 2021, "2111.10603")


def mean() -> optax.GradientTransformationExtraArgs:
    """The mean of the gradients of all tasks: the baseline of every other aggregator.

        result = (g_1 + ... + g_m) / m

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; put it first in a
      chain, `optax.chain(mean(), gk.adam(1e-3))`. No state. One backward pass; nothing moves between devices.

    Raises:
      ValueError: leading axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = mean()
      >>> print(tx.update(jnp.array([[1.0, 0.0], [3.0, 2.0]]), tx.init(jnp.zeros(2)))[0])
      [2. 1.]

    Reference: the baseline of Lin et al. Reasonable Effectiveness of Random Weighting. 2021, arXiv 2111.10603.
    """
    return fixed_weights("mean", lambda m, state, **extra: (jnp.full((m,), 1 / m, float), state))


def sum() -> optax.GradientTransformationExtraArgs:
    """The sum of the gradients of all tasks, as a loss that is the sum of the losses gives it.

        result = g_1 + ... + g_m

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it. No state. One
      backward pass; nothing moves between devices.

    Raises:
      ValueError: leading axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = sum()
      >>> print(tx.update(jnp.array([[1.0, 0.0], [3.0, 2.0]]), tx.init(jnp.zeros(2)))[0])
      [4. 2.]

    Reference: the baseline of Lin et al. Reasonable Effectiveness of Random Weighting. 2021, arXiv 2111.10603.
    """
    return fixed_weights("sum", lambda m, state, **extra: (jnp.ones((m,), float), state))


def constant(weights: Any) -> optax.GradientTransformationExtraArgs:
    """The gradients with weights that are known in advance (linear scalarization).

        result = w_1 g_1 + ... + w_m g_m

    Args:
      weights: w, m finite numbers, used as they are.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it. No state. One
      backward pass; nothing moves between devices.

    Raises:
      ValueError: at construction, weights that are no vector of finite numbers; when called, another number of
        gradients, leading axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = constant([2.0, -1.0])
      >>> print(tx.update(jnp.array([[1.0, 0.0], [3.0, 2.0]]), tx.init(jnp.zeros(2)))[0])
      [-1. -2.]

    Reference: the baseline of Lin et al. Reasonable Effectiveness of Random Weighting. 2021, arXiv 2111.10603.
    """
    if weights is None:
        raise ValueError("weights must be a vector, one number per gradient, got None; write weights=[1.0, 2.0]")
    check_vector("weights", weights)
    return fixed_weights(
        "constant", lambda m, state, **extra: (vector_of("constant", "weights", weights, m, float), state)
    )


class RandomWeightingState(NamedTuple):
    """The random key of the next step; None where it comes with the step."""

    key: Any


def random_weighting(*, key: Key | None = None) -> optax.GradientTransformationExtraArgs:
    """Random loss weighting: other weights of the simplex in every step, on average the mean.

        result = w_1 g_1 + ... + w_m g_m,      w = softmax(z),   z standard normal, m numbers in every step

    Args:
      key: a random key (typed key or integer) from which the weights of all steps follow. Default None: `update` needs
        `key=`, which takes precedence where both are given. The same on all replicas.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it. State: a key. One
      backward pass; nothing moves between devices.

    Raises:
      ValueError: at construction, a key that is none; when called, no key, leading axes that differ or are missing,
        gradients that do not match the parameters.

    Example:
      >>> tx = random_weighting(key=0)
      >>> u = tx.update(jnp.eye(3), tx.init(jnp.zeros(3)))[0]
      >>> bool((u > 0).all()), round(float(u.sum()), 4)
      (True, 1.0)

    Reference: Lin et al. Reasonable Effectiveness of Random Weighting. 2021, arXiv 2111.10603. RLW with normal weights.
    """
    check_key(key)

    def init(params: Any) -> RandomWeightingState:
        del params
        return RandomWeightingState(first_key(key))

    def weigh(m: int, state: RandomWeightingState, **extra: Any) -> tuple[jax.Array, RandomWeightingState]:
        kept, now = needed_key("random_weighting", state.key, extra.get("key"))
        # In float32, so that the weights are the same where float64 is enabled.
        return jax.nn.softmax(jax.random.normal(now, (m,), jnp.float32)), RandomWeightingState(kept)

    return fixed_weights("random_weighting", weigh, init=init)


register(mean, form="aggregator", paper=PAPER)
register(sum, form="aggregator", paper=PAPER)
register(
    constant,
    form="aggregator",
    paper=PAPER,
    example={"weights": [0.5, 0.2, 0.3]},
    tasks=Tasks(3, 3),
    notes="weights of one's own, one per task",
)
register(random_weighting, form="aggregator", paper=PAPER, needs=("key",))
