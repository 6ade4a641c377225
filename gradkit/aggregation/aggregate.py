"""An aggregator from a function of one's own."""

from collections.abc import Callable
from typing import Any

import optax

from gradkit import checks
from gradkit.aggregation.makers import aggregator, nothing
from gradkit.engine.lazy_gradients import stacked


def aggregate(
    update: Callable[..., tuple[Any, Any]], *, init: Callable[[Any], Any] | None = None
) -> optax.GradientTransformationExtraArgs:
    """The first link of a chain from a function of stacked gradients, such as one of another library.

        result, state <- update(gradients, state, **extra)        gradients with a leading axis of tasks on every leaf

    Args:
      update: (gradients, state, **extra) -> (a tree without the leading axis, state). Among the extra arguments of a
        loop are `losses` and `key`.
      init: parameters, WITHOUT the leading axis -> state. Default None: no state.

    Returns:
      A transformation whose updates come in with a leading axis and leave without it, for every loop that
      `gk.aggregation.upgrad` is for: `optax.chain(aggregate(mine), gk.adam(1e-3))`. All gradients are in memory. Where
      weights follow from inner products or losses, the makers of `gradkit/aggregation/makers.py` need fewer.

    Raises:
      ValueError: an argument that is no function; when called, leading axes that differ or are missing, gradients that
        do not match the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = aggregate(lambda g, state, **extra: (jnp.median(g, axis=0), state))
      >>> print(tx.update(jnp.array([[1.0, 5.0], [2.0, 0.0], [9.0, 1.0]]), tx.init(jnp.zeros(2)))[0])
      [2. 1.]

    Reference: none.
    """
    checks.function("update", update)
    if init is not None:
        checks.function("init", init)

    def run(gradients: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        del params
        return update(stacked(gradients), state, **extra)

    return aggregator("aggregate", run, init=nothing if init is None else init)
