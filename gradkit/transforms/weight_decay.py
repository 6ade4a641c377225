"""Weight decay as a link of the chain, so that every method has it without an argument of its own.

    d_t = u_t + weight_decay(t) * x_t          on the selected leaves

Before the moments this is the L2 penalty; just before the learning rate it is decoupled decay: the
parameters shrink by learning_rate * weight_decay per step, whatever the gradient.
"""

import functools
from typing import Any, NamedTuple

import jax
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import at_count, check_decay_mask, counter, increment, once_per_dtype, scalar, transformation
from gradkit.leaves import Method, check_mask_form, resolve_mask
from gradkit.leaves.scopes import decay_here
from gradkit.types import Mask, ScalarOrSchedule


@functools.partial(jax.jit, inline=True)
def _plus(u: jax.Array, decay: Any, x: jax.Array) -> jax.Array:
    return u + decay * x


class AddDecayedWeightsState(NamedTuple):
    """Number of updates made, which a schedule for the decay is called with; None where there is no schedule."""

    count: Any


def add_decayed_weights(
    weight_decay: ScalarOrSchedule = 0.0, *, weight_decay_mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    """Adds `weight_decay` times the parameters to the updates.

    Args:
      weight_decay: coefficient >= 0, or a schedule step -> coefficient. Default 0.
      weight_decay_mask: which leaves decay: a selector, a tree of booleans, a function params -> booleans,
        a boolean. Default None: all.

    Returns:
      A transformation that needs `params`. State: a counter where the coefficient is a schedule, else nothing.
      Elementwise: no collective.

    Raises:
      ValueError: a negative or NaN coefficient; `params` missing at update.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkit.leaves import by_path
      >>> tx = add_decayed_weights(0.1, weight_decay_mask=by_path("kernel"))
      >>> x = {"bias": jnp.array(2.0), "kernel": jnp.array(2.0)}
      >>> updates, _ = tx.update({"bias": jnp.array(0.0), "kernel": jnp.array(0.0)}, tx.init(x), x)
      >>> float(updates["bias"]), round(float(updates["kernel"]), 4)
      (0.0, 0.2)

    Reference: Loshchilov, Hutter. Decoupled Weight Decay Regularization. 2017, arXiv 1711.05101. optax's
    link of this name promotes traced coefficients implicitly.
    """
    checks.real("weight_decay", weight_decay, "[0, inf)", schedule=True)
    nothing = isinstance(weight_decay, int | float) and weight_decay == 0
    check_mask_form(weight_decay_mask=weight_decay_mask)

    def init(params: optax.Params) -> AddDecayedWeightsState:
        check_decay_mask("add_decayed_weights", weight_decay_mask, params)
        return AddDecayedWeightsState(counter(callable(weight_decay)))

    def update(updates: Any, state: AddDecayedWeightsState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        if not nothing:
            decay = decay_here(at_count(weight_decay, state.count, "add_decayed_weights: weight_decay"))
            mask = resolve_mask(weight_decay_mask, updates)
            factor = once_per_dtype(lambda u: scalar(decay, u))
            updates = jax.tree.map(lambda u, x, on: _plus(u, factor(u), x) if on else u, updates, params, mask)
        return updates, AddDecayedWeightsState(increment(state.count))

    return transformation(
        "add_decayed_weights",
        init,
        update,
        needs_params=not nothing,
        complex_leaves=True,
        described=Method("add_decayed_weights", None, weight_decay, weight_decay_mask),
    )


register(
    add_decayed_weights,
    form="primitive",
    paper=Paper("Decoupled Weight Decay Regularization", "Loshchilov, Hutter", 2017, "1711.05101"),
    example={"weight_decay": 0.01},
)
