"""Weight decay after a step instead of beside it: x <- (x + u) (1 - learning_rate weight_decay), u the step."""

from typing import Any, NamedTuple

import jax
import optax

from gradkit.engine.core import at_count, check_decay_mask, counter, increment, scalar, transformation
from gradkit.leaves import Method, resolve_mask
from gradkit.leaves.scopes import decay_here


class DecayAfterStepState(NamedTuple):
    """Number of updates made; None where neither the rate nor the decay is a schedule."""

    count: Any


def decay_after_step(
    method: str, learning_rate: Any, weight_decay: Any, mask: Any
) -> optax.GradientTransformationExtraArgs:
    """The link behind the learning rate after which parameters decay once the step is made.

    Args:
      method: the public name, for messages and `describe`.
      learning_rate: that of the link before.
      weight_decay: coefficient, or a schedule.
      mask: which leaves decay.
    """

    def init(params: optax.Params) -> DecayAfterStepState:
        check_decay_mask(method, mask, params)
        return DecayAfterStepState(counter(callable(learning_rate) or callable(weight_decay)))

    def update(updates: Any, state: DecayAfterStepState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        rate = at_count(learning_rate, state.count, f"{method}: learning_rate")
        decay = decay_here(at_count(weight_decay, state.count, f"{method}: weight_decay"))

        def one(u: jax.Array, x: jax.Array, on: bool) -> jax.Array:
            return u - scalar(rate, u) * scalar(decay, u) * (x + u) if on else u

        new = jax.tree.map(one, updates, params, resolve_mask(mask, updates))
        return new, DecayAfterStepState(increment(state.count))

    described = Method(method, None, weight_decay, mask)
    return transformation(method, init, update, needs_params=True, complex_leaves=True, described=described)
