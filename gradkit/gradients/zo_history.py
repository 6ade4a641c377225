"""ZO-SGD with a history: the slope of this step on an average of the directions of all steps."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import optimizer, scalar, zeros
from gradkit.engine.zeroth_order import Estimate
from gradkit.gradients.replicas import mean_over, own_copy
from gradkit.gradients.zo_sgd import ZerothOrder
from gradkit.leaves import Method
from gradkit.transforms import scale_by_learning_rate
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper(
    "ZeroFlow: Overcoming Catastrophic Forgetting is Easier than You Think", "Feng et al.", 2025, "2501.01045"
)


class ZoHistoryState(NamedTuple):
    """h, the average of the directions; whether there is one yet; the state of the learning rate."""

    history: Any
    started: jax.Array
    inner: Any


def zo_history(
    loss_fn: Callable[..., Any],
    learning_rate: ScalarOrSchedule,
    *,
    history_decay: Scalar = 0.9,
    epsilon: Scalar = 1e-3,
    two_sided: bool = True,
    distribution: str = "normal",
    nonzero_fraction: Scalar = 1.0,
    axis_name: Any = None,
) -> ZerothOrder:
    """ZeroFlow's historical estimation, as its code has it: today's slope on an average of directions.

        z_t ~ N(0, I),    c_t = the slope of L along z_t, as in `zo_sgd`
        h_1 = z_1,        h_t = history_decay h_{t-1} + (1 - history_decay) z_t
        x <- x - learning_rate c_t h_t

    After the first step E[c_t h_t] = (1 - history_decay) grad L for independent directions: what the average adds has
    mean 0, and is noise of the size of the slope. `zo_sgd` with momentum averages c z, and is the sound variant.

    Args:
      loss_fn: as in `zo_sgd`.
      learning_rate: step size >= 0, or a schedule.
      history_decay: weight of the earlier directions (alpha), in [0, 1). Default 0.9 (official code).
      epsilon: as in `zo_sgd`, > 0. Default 1e-3.
      two_sided: as in `zo_sgd`. Default True.
      distribution: as in `zo_sgd`. Default "normal".
      nonzero_fraction: as in `zo_sgd`, in (0, 1]. Default 1.
      axis_name: as in `zo_sgd`. Default None.

    Returns:
      `ZerothOrder(init, update)`. State: 1 word per parameter. Memory and collectives: those of `zo_sgd`.

    Raises:
      ValueError: a hyperparameter outside its range; when called, as `zeroth_order_gradient`.

    Example:
      >>> method, x = zo_history(lambda x: 3 * x, 1.0, history_decay=0.5), jnp.array(0.0)
      >>> state = method.init(x)
      >>> for z in (1.0, 0.0):  # the slope is 3, then 0
      ...     value, u, state = method.update(state, x, direction=jnp.array([z]))
      ...     print(abs(round(float(u), 2)), float(state.history))
      3.0 1.0
      0.0 0.5

    Reference: Feng et al. ZeroFlow: Overcoming Catastrophic Forgetting is Easier than You Think. 2025, arXiv
    2501.01045. Whether the paper means an average of c z is not clear; this is what its code computes.
    """
    checks.function("loss_fn", loss_fn)
    checks.real("history_decay", history_decay, "[0, 1)")
    checks.axis_name("axis_name", axis_name)
    rule = Estimate("zo_history", epsilon, 1, two_sided, distribution, False, nonzero_fraction).checked()
    tx = optimizer(Method("zo_history", learning_rate), scale_by_learning_rate(learning_rate))
    over = partial(mean_over, axis_name=axis_name)

    def init(params: Any) -> ZoHistoryState:
        return ZoHistoryState(zeros(jax.tree.map(jnp.asarray, params)), jnp.zeros((), bool), tx.init(params))

    def update(
        state: ZoHistoryState, params: Any, *args: Any, key: Any = None, direction: Any = None, **kwargs: Any
    ) -> tuple[Any, Any, ZoHistoryState]:
        params = own_copy(jax.tree.map(jnp.asarray, params), axis_name)
        loss, wide = rule.prepared(loss_fn, params, args, kwargs)
        z = rule.directions(key, direction, wide)(0)
        c, value = rule.along(loss, wide, z, None if two_sided else loss(wide), over)

        def averaged(h: jax.Array, z: jax.Array) -> jax.Array:
            a = scalar(history_decay, z)
            return jnp.where(state.started, a * h + (1 - a) * z, z)

        h = jax.tree.map(averaged, state.history, z)
        g = jax.tree.map(lambda h, x: (c.astype(h.dtype) * h).astype(x.dtype), h, params)
        updates, inner = tx.update(g, state.inner, params)
        return value, updates, ZoHistoryState(h, jnp.ones((), bool), inner)

    return ZerothOrder(init, update)


register(zo_history, form="program", paper=PAPER, golden=("second_shelf/zo_history",))
