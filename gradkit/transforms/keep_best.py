"""Keep the best of three points: the parameters, the step that an optimizer makes, and the opposite step.

u     the update of inner
x <-  the point among x, x + u, x - u with the smallest loss on this batch; x on a tie with it
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit.catalogue import Paper, register
from gradkit.engine.core import inside, need, transformation

PAPER = Paper(
    "ZeroFlow: Overcoming Catastrophic Forgetting is Easier than You Think", "Feng et al.", 2025, "2501.01045"
)


class KeepBestState(NamedTuple):
    """The metric `kept`, the sign of the step that was made, and the state of the inner transformation."""

    metrics: dict[str, jax.Array]
    inner: Any


def keep_best(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Makes the step of an optimizer, the opposite one, or none: whichever has the smallest loss on this batch.

        u     = the update of inner
        x_t   = argmin of L over x_{t-1}, x_{t-1} + u, x_{t-1} - u

    A tie with L(x_{t-1}) leaves the parameters where they are: a saturated or rounded loss makes no random walk.
    Between the two steps, x + u has precedence. A loss that is not finite counts as infinite. The state of `inner`
    advances in any case, once per step: it sees every gradient.

    Args:
      inner: any transformation whose updates are added to the parameters.

    Returns:
      A transformation that needs `params` and `value_fn`, which it calls three times; `value` is not read, as that of a
      zeroth-order source is of other points. Metric: `kept`, 1, -1 or 0, the sign of u in the step that was made.
      State: that of `inner`. Collectives: those of `inner` and of the loss.

    Raises:
      ValueError: no transformation; at `update`, `params` or `value_fn` missing.

    Example:
      >>> tx, x = keep_best(optax.sgd(1.0)), jnp.array(3.0)
      >>> u, state = tx.update(jnp.array(-1.0), tx.init(x), x, value_fn=jnp.square)  # a gradient of the wrong sign
      >>> float(u), float(state.metrics["kept"])
      (-1.0, -1.0)

    Reference: Feng et al. ZeroFlow: Overcoming Catastrophic Forgetting is Easier than You Think. 2025, arXiv
    2501.01045
    (ZO-SGD-Conserve). Departures from its code: on a tie it prefers x - u to x + u to x; it makes the trials by steps
    of the optimizer itself with the factors 1, -2 and 1 or 2, which is the mirror image for plain SGD alone, and
    advances momenta and counters two or three times.
    """
    below = inside(inner)

    def published(kept: Any) -> dict[str, jax.Array]:
        return {"kept": jnp.asarray(kept).astype(jnp.float32)}

    def init(params: optax.Params) -> KeepBestState:
        return KeepBestState(published(0.0), below.init(params))

    def update(updates: Any, state: KeepBestState, params: Any = None, **extra: Any) -> tuple[Any, KeepBestState]:
        value_fn = need("keep_best", extra, "value_fn")
        u, own = below.update(updates, state.inner, params, **extra)

        def at(sign: float) -> jax.Array:
            value = jnp.asarray(value_fn(jax.tree.map(lambda x, u: x + sign * u, params, u) if sign else params))
            return jnp.where(jnp.isfinite(value), value, jnp.full_like(value, jnp.inf))

        values = jnp.stack([at(0.0), at(1.0), at(-1.0)])
        kept = jnp.array([0.0, 1.0, -1.0])[jnp.argmin(values)]
        moved = jax.tree.map(lambda u: jnp.where(kept == 0, jnp.zeros_like(u), kept.astype(u.dtype) * u), u)
        return moved, KeepBestState(published(kept), own)

    return transformation("keep_best", init, update, needs_params=True)


register(
    keep_best,
    form="wrapper",
    paper=PAPER,
    needs=("value_fn",),
    collectives="norms",
    golden=("second_shelf/zo_conservative",),
    opt_outs={"extra": "what is inside is handed the loss as well, which a line search reads"},
    notes="three evaluations of the loss per step, which never rises on the batch",
)
