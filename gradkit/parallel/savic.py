"""SAVIC: local steps scaled by a preconditioner that all replicas share, because it changes only when they average."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import abs_sq, at_count, increment, need, scalar, transformation, widen, zeros
from gradkit.engine.matching import check_leaves
from gradkit.parallel.replicas import alike, wide_mean
from gradkit.parallel.rounds import checked, either, ends_round, led, plain, reached
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper("Local Methods with Adaptivity via Scaling", "Chezhegov et al.", 2024, "2406.00846")
PRECONDITIONERS = ("adam", "rmsprop", "oasis")


class SyncedPreconditionerState(NamedTuple):
    """The number of steps, the number of rounds ended, and D^2 (with "oasis", D)."""

    count: jax.Array
    rounds: jax.Array
    D: Any


class _Rule(NamedTuple):
    """How D is used and refreshed; the same for the primitive and the strategy."""

    scale: Callable[[Any, SyncedPreconditionerState], Any]
    refresh: Callable[[Any, SyncedPreconditionerState], SyncedPreconditionerState]
    init: Callable[[Any], SyncedPreconditionerState]


def _rule(preconditioner: str, b2: Any, alpha: Any) -> _Rule:
    checks.choice("preconditioner", preconditioner, PRECONDITIONERS)
    checks.real("b2", b2, "[0, 1)")
    checks.real("alpha", alpha, "(0, inf)")
    hessian = preconditioner == "oasis"

    def init(params: Any) -> SyncedPreconditionerState:
        zero = jnp.zeros((), jnp.int32)
        return SyncedPreconditionerState(zero, jnp.zeros((), jnp.int32), zeros(params, real=True))

    def scale(g: Any, state: SyncedPreconditionerState) -> Any:
        first = state.rounds == 0

        def leaf(g: jax.Array, D: jax.Array) -> jax.Array:
            size = jnp.maximum(scalar(alpha, D), jnp.abs(D) if hessian else jnp.sqrt(D))
            return g / jnp.where(first, jnp.ones_like(size), size).astype(g.dtype)

        return jax.tree.map(leaf, g, state.D)

    def refresh(seen: Any, state: SyncedPreconditionerState) -> SyncedPreconditionerState:
        def leaf(D: jax.Array, s: jax.Array) -> jax.Array:
            b = scalar(b2, D)
            if preconditioner != "rmsprop":
                power = jnp.asarray(b, D.dtype) ** (state.rounds + 1).astype(D.dtype)
                b = (b - power) / (1 - power)
            return b * D + (1 - b) * (s.real.astype(D.dtype) if hessian else abs_sq(s).astype(D.dtype))

        return state._replace(rounds=increment(state.rounds), D=jax.tree.map(leaf, state.D, seen))

    return _Rule(scale, refresh, init)


def scale_by_synced_preconditioner(
    *,
    sync_every: int = 8,
    preconditioner: str = "adam",
    b2: Scalar = 0.999,
    alpha: Scalar = 1e-8,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides by a preconditioner that is refreshed once per round, from the mean gradient of all replicas.

    Equations: D^ and its update of `savic`, without the mean of the parameters:

        u = g / D^

    Args:
      sync_every: steps of a round, >= 1. Default 8.
      preconditioner: "adam" (default), "rmsprop" or "oasis", which needs the extra argument `curvature`.
      b2: decay of D, in [0, 1). Default 0.999 (paper).
      alpha: lower bound of D^, > 0. Default 1e-8.
      axis_name: name of the axis of the replicas. Default None: one replica, whose D is updated from its own gradients.

    Returns:
      A transformation. State: 1 word per parameter and two counters. Collectives: with `axis_name`, one all-reduce of
      the gradient per step in which a round ends; none without.

    Raises:
      ValueError: a hyperparameter outside its range; no axis of this name; `curvature` missing.

    Example:
      >>> tx, g = scale_by_synced_preconditioner(sync_every=1), jnp.array(4.0)
      >>> u, state = tx.update(g, tx.init(g))
      >>> print(u, tx.update(g, state)[0])  # the first round has no D yet
      4.0 1.0

    Reference: Chezhegov et al. Local Methods with Adaptivity via Scaling. 2024, arXiv 2406.00846. D is refreshed after
    the step and used from the next on; before its first refresh D^ is 1.
    """
    K = checks.integer("sync_every", sync_every, 1)
    checks.axis_name("axis_name", axis_name)
    rule, name = _rule(preconditioner, b2, alpha), "scale_by_synced_preconditioner"

    def update(updates: Any, state: SyncedPreconditionerState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params
        seen = need(name, extra, "curvature") if preconditioner == "oasis" else updates
        new = rule.scale(updates, state)
        state = state._replace(count=increment(state.count))

        def meet() -> Any:
            return rule.refresh(seen if axis_name is None else wide_mean(name, seen, axis_name), state)

        return new, either(None, ends_round(state.count, K), meet, state)

    return transformation(name, rule.init, update, complex_leaves=True)


def savic(
    learning_rate: ScalarOrSchedule,
    *,
    sync_every: int = 8,
    preconditioner: str = "adam",
    b2: Scalar = 0.999,
    alpha: Scalar = 1e-8,
    axis_name: Any = "replica",
) -> optax.GradientTransformationExtraArgs:
    """Local SGD with a shared scaling: adaptive steps that do not pull replicas apart.

    Equations, for replica k in round r, with g the mean over the replicas of the gradients of the last step of a round:

        x_k <- x_k - learning_rate g_k / D^            D^ = max(alpha, |D|), replicated; 1 in the first round
        x_k <- (1/W) sum_j x_j                         at the end of a round, after the step; and then
        D^2 <- b2 D^2 + (1 - b2) g^2                   "rmsprop"
        D^2 <- b_r D^2 + (1 - b_r) g^2                 "adam": b_r = (b2 - b2^{r+1}) / (1 - b2^{r+1}), r = 0, 1, ...
        D   <- b_r D + (1 - b_r) diag H                "oasis": diag H the mean over replicas of `curvature`

    How to run it, and `sync`, are as in `local_updates`.

    Args:
      learning_rate: step size >= 0, or a schedule of the steps. In the first round it is that of local SGD.
      sync_every: steps of a round, >= 1. Default 8.
      preconditioner: "adam" (default), "rmsprop" or "oasis"; the last needs the extra argument `curvature` in a step
        that ends a round: the diagonal of the Hessian at Rademacher vectors that all replicas share.
      b2: decay of D, in [0, 1). Default 0.999 (paper).
      alpha: lower bound of D^, > 0. Default 1e-8.
      axis_name: name of the axis of the replicas. Default "replica".

    Returns:
      A transformation that needs `params`. State: 1 word per parameter, replicated, and two counters.
      Collectives: one all-reduce of parameters and gradient per round, 2 words per parameter, in float32.

    Raises:
      ValueError: a hyperparameter outside its range; leaves of integers; no axis of this name; `curvature` missing.

    Example:
      >>> tx = savic(0.5, sync_every=1)
      >>> x, g = jnp.array([1.0, 1.0]), jnp.array([0.0, 2.0])
      >>> u, state = jax.vmap(tx.update, axis_name="replica")(g, jax.vmap(tx.init)(x), x)
      >>> print(u, state.D)
      [-0.5 -0.5] [1. 1.]

    Reference: Chezhegov et al. Local Methods with Adaptivity via Scaling. 2024, arXiv 2406.00846. D is refreshed after
    the parameters are averaged, from the mean gradient of the last local step, and used from the next step on; before
    its first refresh D^ is 1. `synchronize` averages the parameters and leaves D as it is. Their variant with a D per
    replica is `local_updates` around any adaptive method.
    """
    checks.axis_name("axis_name", axis_name, optional=False)
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    K = checks.integer("sync_every", sync_every, 1)
    rule = _rule(preconditioner, b2, alpha)

    def init(params: Any) -> SyncedPreconditionerState:
        check_leaves("savic", params, complex_leaves=True)
        return rule.init(params)

    def update(
        updates: Any, state: Any, params: Any = None, *, sync: Any = None, curvature: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        del extra
        updates, params = checked("savic", updates, params, axis_name)
        rate = at_count(learning_rate, state.count, "savic: learning_rate")
        g = widen(updates)
        step = jax.tree.map(lambda d: -scalar(rate, d) * d, rule.scale(g, state))
        u = jax.tree.map(lambda s, g: s.astype(g.dtype), step, updates)
        state = state._replace(count=increment(state.count))

        def meet() -> tuple[Any, Any]:
            seen = need("savic", {"curvature": curvature}, "curvature") if preconditioner == "oasis" else g
            x, mean = wide_mean("savic", (reached(params, step), seen), axis_name)
            return led(x, params, u), rule.refresh(mean, state)

        return either(sync, ends_round(state.count, K), meet, (alike(u, params), state))

    def synchronize(params: Any, state: Any) -> tuple[Any, Any]:
        check_leaves("synchronize", params, complex_leaves=True)
        return plain(wide_mean("savic", widen(params), axis_name), params), state

    update.synchronize = synchronize  # pyright: ignore[reportFunctionMemberAccess]
    return optax.GradientTransformationExtraArgs(init, update)


register(
    scale_by_synced_preconditioner,
    form="primitive",
    paper=PAPER,
    words=1,
    example={"sync_every": 2},
    race=Race(1e-3),
)
register(savic, form="strategy", paper=PAPER, words=1, sent=2, collectives="replicas", example={"sync_every": 2})
