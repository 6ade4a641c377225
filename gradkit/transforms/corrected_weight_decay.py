"""Corrected weight decay (AdamC, SGDC): the decay of normalised layers falls with the learning rate.

d_t = u_t + weight_decay (learning_rate(t) / peak_value) x_{t-1}     on corrected leaves
d_t = u_t + weight_decay x_{t-1}                               on the other leaves that decay
"""

from typing import Any, NamedTuple

import jax
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import at_count, check_decay_mask, counter, increment, once_per_dtype, scalar, transformation
from gradkit.leaves import Method, by_role, check_mask, check_mask_form, resolve_mask
from gradkit.leaves.scopes import decay_here
from gradkit.types import Mask, ScalarOrSchedule

NAME = "corrected_weight_decay"
PAPER = Paper("Why Gradients Rapidly Increase Near the End of Training", "Defazio", 2025, "2506.02285")


class CorrectedWeightDecayState(NamedTuple):
    """Number of updates made, which schedules are called with; None where there is none."""

    count: Any


def corrected_weight_decay(
    weight_decay: ScalarOrSchedule,
    learning_rate: ScalarOrSchedule,
    *,
    peak_value: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask | None = None,
    corrected_mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adds weight decay in proportion to the learning rate, so that normalised layers keep their balance.

    Equations, with the direction u_t that arrives at this link, and x before the step:

        d_t = u_t + weight_decay (learning_rate(t) / peak_value) x_{t-1}     on corrected leaves
        d_t = u_t + weight_decay x_{t-1}                               on the other leaves that decay

    After the learning rate corrected leaves shrink by learning_rate(t)^2 weight_decay / peak_value. It stands in a
    chain where `add_decayed_weights` stands. A wrapper that skips steps must skip this link and the learning rate
    alike, so that both schedules are at the same step.

    Args:
      weight_decay: coefficient >= 0, or a schedule step -> coefficient.
      learning_rate: the rate of the last link of the chain: the same number >= 0, or the same schedule.
      peak_value: largest value of the schedule, > 0. Required with a schedule. Default None: the number that the rate
        is.
      weight_decay_mask: which leaves decay. Default all.
      corrected_mask: which of them are corrected: layers whose output is normalised. Default all but those of the role
        "head" (paper).

    Returns:
      A transformation that needs `params`. State: a counter where an argument is a schedule. Elementwise: no
      collective.

    Raises:
      ValueError: a number outside its range; a schedule without `peak_value`; `params` missing at update.

    Example:
      >>> import jax.numpy as jnp
      >>> rate = optax.linear_schedule(0.5, 0.0, 2)
      >>> tx = corrected_weight_decay(0.1, rate, peak_value=0.5)
      >>> x = jnp.array(1.0)
      >>> state = tx.init(x)
      >>> for step in range(3):
      ...     u, state = tx.update(0 * x, state, x)
      ...     print(u.round(4))
      0.1
      0.05
      0.0

    Reference: Defazio. Why Gradients Rapidly Increase Near the End of Training. 2025, arXiv 2506.02285 (AdamC and SGDC,
    by what stands in front of this link). A port takes the rate that it is constructed with for the peak.
    """
    checks.real("weight_decay", weight_decay, "[0, inf)", schedule=True)
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    checks.real("peak_value", peak_value, "(0, inf)", optional=True)
    if callable(learning_rate) and peak_value is None:
        raise ValueError(
            f"{NAME}: peak_value is None with a schedule for learning_rate, and must be a number > 0; write "
            "peak_value=the largest value of the schedule"
        )
    check_mask_form(weight_decay_mask=weight_decay_mask, corrected_mask=corrected_mask)
    chosen = ~by_role("head") if corrected_mask is None else corrected_mask

    def init(params: optax.Params) -> CorrectedWeightDecayState:
        check_decay_mask(NAME, weight_decay_mask, params)
        check_mask(corrected_mask, params, method=NAME, argument="corrected_mask", instead="corrected_mask=False")
        return CorrectedWeightDecayState(counter(callable(learning_rate) or callable(weight_decay)))

    def update(updates: Any, state: CorrectedWeightDecayState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        decay = decay_here(at_count(weight_decay, state.count, f"{NAME}: weight_decay"))
        rate = at_count(learning_rate, state.count, f"{NAME}: learning_rate")
        plain = once_per_dtype(lambda u: scalar(decay, u))

        def proportional(u: jax.Array) -> Any:
            return plain(u) if peak_value is None else plain(u) * (scalar(rate, u) / scalar(peak_value, u))

        shrunk = once_per_dtype(proportional)

        def one(u: jax.Array, x: jax.Array, on: bool, corrected: bool) -> jax.Array:
            return u + (shrunk if corrected else plain)(u) * x if on else u

        masks = resolve_mask(weight_decay_mask, updates), resolve_mask(chosen, updates)
        return jax.tree.map(one, updates, params, *masks), CorrectedWeightDecayState(increment(state.count))

    described = Method(NAME, None, weight_decay, weight_decay_mask)
    return transformation(NAME, init, update, needs_params=True, complex_leaves=True, described=described)


register(
    corrected_weight_decay,
    form="primitive",
    paper=PAPER,
    golden=("modern/corrected_weight_decay",),
    example={"weight_decay": 0.01, "learning_rate": 0.1, "peak_value": 0.2},
)
