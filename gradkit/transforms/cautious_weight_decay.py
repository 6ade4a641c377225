"""Cautious weight decay: only the entries decay that the update does not make larger.

d_t = u_t + weight_decay(t) 1[u_t x_{t-1} >= 0] x_{t-1}
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import at_count, check_decay_mask, counter, increment, once_per_dtype, scalar, transformation
from gradkit.leaves import Method, resolve_mask
from gradkit.leaves.scopes import decay_here
from gradkit.types import Mask, ScalarOrSchedule

NAME = "cautious_weight_decay"


@functools.partial(jax.jit, inline=True)
def _plus(u: jax.Array, decay: Any, x: jax.Array) -> jax.Array:
    # Of the signs: a product of small numbers would be rounded to 0.
    agree = jnp.sign(u) * jnp.sign(x) >= 0
    return u + decay * (x * agree.astype(x.dtype))


class CautiousWeightDecayState(NamedTuple):
    """Number of updates made, which a schedule for the decay is called with; None where there is no schedule."""

    count: Any


def cautious_weight_decay(
    weight_decay: ScalarOrSchedule = 0.0, *, weight_decay_mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    """Adds the decay of those parameters whose update does not already point away from 0.

    Equations, with the direction u_t that arrives at this link (descent subtracts it), and x before the step:

        d_t = u_t + weight_decay(t) 1[u_t x_{t-1} >= 0] x_{t-1}       entrywise, on the selected leaves

    It stands in a chain where `add_decayed_weights` stands: after the direction, before the learning rate. Where u or x
    is 0 the entry decays.

    Args:
      weight_decay: coefficient >= 0, or a schedule step -> coefficient. Default 0; the paper keeps that of AdamW.
      weight_decay_mask: which leaves decay: a selector, a tree of booleans, a function params -> booleans, a boolean.
        Default None: all.

    Returns:
      A transformation that needs `params`. State: a counter where the coefficient is a schedule, else nothing.
      Elementwise: no collective.

    Raises:
      ValueError: a negative or NaN coefficient; `params` missing at update; complex leaves, which have no sign.

    Example:
      >>> tx = cautious_weight_decay(0.5)
      >>> x = jnp.array([2.0, 2.0])
      >>> tx.update(jnp.array([1.0, -1.0]), tx.init(x), x)[0].tolist()  # the second grows already
      [2.0, -1.0]

    Reference: Chen et al. Cautious Weight Decay. 2025, arXiv 2510.12402, Algorithm 1.
    """
    checks.real("weight_decay", weight_decay, "[0, inf)", schedule=True)
    nothing = isinstance(weight_decay, int | float) and weight_decay == 0

    def init(params: optax.Params) -> CautiousWeightDecayState:
        check_decay_mask(NAME, weight_decay_mask, params)
        return CautiousWeightDecayState(counter(callable(weight_decay)))

    def update(updates: Any, state: CautiousWeightDecayState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        if not nothing:
            decay = decay_here(at_count(weight_decay, state.count, f"{NAME}: weight_decay"))
            mask = resolve_mask(weight_decay_mask, updates)
            factor = once_per_dtype(lambda u: scalar(decay, u))
            updates = jax.tree.map(lambda u, x, on: _plus(u, factor(u), x) if on else u, updates, params, mask)
        return updates, CautiousWeightDecayState(increment(state.count))

    described = Method(NAME, None, weight_decay, weight_decay_mask)
    return transformation(NAME, init, update, needs_params=not nothing, described=described)


register(
    cautious_weight_decay,
    form="primitive",
    paper=Paper("Cautious Weight Decay", "Chen et al.", 2025, "2510.12402"),
    golden=("modern/cautious_weight_decay",),
    example={"weight_decay": 0.01},
)
