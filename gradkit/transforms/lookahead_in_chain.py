"""Lookahead as the last link of a chain, on one set of parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.anchors import copied
from gradkit.engine.core import increment, scalar, transformation
from gradkit.types import Scalar


class LookaheadInChainState(NamedTuple):
    """Number of updates made, and the slow weights."""

    count: jax.Array
    slow: Any

    exact_fields = ("slow",)  # parameters, which gk.precision(state=...) must not round


def lookahead_in_chain(*, sync_every: int = 5, slow_step_size: Scalar = 0.5) -> optax.GradientTransformationExtraArgs:
    """Pulls the parameters back towards slow weights at every k-th step; all other steps pass.

    Equations:

        x_t = x_{t-1} + u_t                                           u_t from the links before
        every k-th step:  x_t <- x~ + a (x_t - x~),   x~ <- x_t       x~ the slow weights, x~_0 = x_0

    It must be the last link, after the learning rate, where the update is the change of the parameters:
    `optax.chain(gk.adam(1e-3), gk.lookahead_in_chain())`. Momenta are not reset.

    Args:
      sync_every: k >= 1, steps between two pulls. Default 5 (official codes of Lookahead and Ranger21).
      slow_step_size: a in [0, 1], the fraction of the way from the slow weights that is kept. Default 0.5. 1 has no
        effect.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter (a float32 copy: parameters may be donated)
      and a counter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = lookahead_in_chain(sync_every=2)
      >>> x = jnp.array(0.0)
      >>> state, path = tx.init(x), []
      >>> for _ in range(4):
      ...     updates, state = tx.update(jnp.array(1.0), state, x)
      ...     x = x + updates
      ...     path.append(float(x))
      >>> path
      [1.0, 1.0, 2.0, 2.0]

    Reference: A component of Ranger21: Wright, Demeure. Ranger21: a synergistic deep learning optimizer. 2021, arXiv
    2106.13731; from Zhang et al. Lookahead Optimizer: k steps forward, 1 step back. 2019, arXiv 1907.08610.
    `optax.lookahead` asks the user to hold both sets of parameters.
    """
    sync_every = checks.integer("sync_every", sync_every, 1)
    checks.real("slow_step_size", slow_step_size, "[0, 1]")

    def init(params: optax.Params) -> LookaheadInChainState:
        return LookaheadInChainState(jnp.zeros((), jnp.int32), copied(params))

    def update(updates: Any, state: LookaheadInChainState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        count = increment(state.count)
        pull = count % sync_every == 0

        def slow(s: jax.Array, x: jax.Array, u: jax.Array) -> jax.Array:
            fast = x.astype(s.dtype) + u.astype(s.dtype)
            return jnp.where(pull, s + scalar(slow_step_size, s) * (fast - s), s)

        def moved(s: jax.Array, x: jax.Array, u: jax.Array) -> jax.Array:
            return jnp.where(pull, (s - x.astype(s.dtype)).astype(u.dtype), u)

        weights = jax.tree.map(slow, state.slow, params, updates)
        updates = jax.tree.map(moved, weights, params, updates)
        return updates, LookaheadInChainState(count, weights)

    return transformation("lookahead_in_chain", init, update, needs_params=True, complex_leaves=True)


register(
    lookahead_in_chain,
    form="primitive",
    paper=Paper("Ranger21: a synergistic deep learning optimizer", "Wright, Demeure", 2021, "2106.13731"),
    words=1,
    golden=("adaptive/ranger21",),
    example={"sync_every": 2},
)
