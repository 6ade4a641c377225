"""Averages of parameters and of the state at separate periods, and MT-DAO, which averages slow momenta seldom."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.accumulators import ema_of_square
from gradkit.engine.core import as_arrays, increment, scalar, transformation, widen, zeros
from gradkit.engine.matching import check_leaves
from gradkit.leaves import names
from gradkit.optimizers.adaptive import multi_timescale_adam, scale_by_multi_momentum
from gradkit.parallel.replicas import alike, wide_mean
from gradkit.parallel.rounds import checked, either, ends_round, led, plain, reached
from gradkit.transforms import clip_by_global_norm, scale_by_learning_rate
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper(
    "MT-DAO: Multi-Timescale Distributed Adaptive Optimizers with Local Updates", "Iacob et al.", 2025, "2510.05361"
)
BASES = ("adam", "adopt", "sgdm")


class PeriodicSyncState(NamedTuple):
    """Number of steps, and the inner state."""

    count: jax.Array
    inner: Any


def periodic_sync(
    inner: optax.GradientTransformation,
    *,
    sync_every: int,
    state_sync_every: Mapping[str, int] | None = None,
    axis_name: Any = "replica",
) -> optax.GradientTransformationExtraArgs:
    """Averages the parameters, and parts of the inner state, each with a period of its own.

    Equations, over replicas k of W after step t:

        x <- (1/W) sum_k x_k                        where t mod K = 0
        part <- (1/W) sum_k part_k                  where t mod K_part = 0

    How to run it, and `sync`, are as in `local_updates`: sync=None follows the periods, False averages nothing, True
    everything.

    Args:
      inner: the transformation of each replica.
      sync_every: K >= 1, of the parameters.
      state_sync_every: period >= 1 of each part of the inner state, by its name: one or several words of a path in
        the state, such as "mu", "momenta/0", from `gk.leaves.names(state)`. Default None: parts are not averaged.
      axis_name: name of the axis of the replicas. Default "replica".

    Returns:
      A transformation that needs `params`. State: that of `inner` and a counter, once per replica. Collectives: for
      each period one all-reduce of all parts that have it, in float32.

    Raises:
      ValueError: a period below 1; a part that is not in the state, of integers, or named twice; no axis of this name.

    Example:
      >>> tx = periodic_sync(optax.trace(0.5), sync_every=1, state_sync_every={"trace": 2})
      >>> x, g = jnp.array([0.0, 0.0]), jnp.array([1.0, 3.0])
      >>> state, step = jax.vmap(tx.init)(x), jax.vmap(tx.update, axis_name="replica")
      >>> for _ in range(2):
      ...     u, state = step(g, state, x)
      ...     print(u, state.inner.trace)
      [2. 2.] [1. 3.]
      [3. 3.] [3. 3.]

    Reference: Iacob et al. MT-DAO: Multi-Timescale Distributed Adaptive Optimizers with Local Updates. 2025, arXiv
    2510.05361; also the scheme of DES-LOC (Iacob et al. 2025). There is no public code; averages are taken after the
    step, not before it, so that replicas agree when a round ends.
    """
    checks.axis_name("axis_name", axis_name, optional=False)
    checks.transformation(inner=inner)
    K = checks.integer("sync_every", sync_every, 1)
    if state_sync_every is not None and not isinstance(state_sync_every, Mapping):
        raise ValueError(
            f"state_sync_every must be a mapping from parts of the state to periods, got {state_sync_every!r}; write "
            "state_sync_every={'mu': 8}"
        )
    periods = {part: checks.integer("state_sync_every", k, 1) for part, k in (state_sync_every or {}).items()}
    tx = optax.with_extra_args_support(inner)

    def of_leaves(state: Any, strict: bool = False) -> list[int | None]:
        """The period of every leaf of the inner state; with `strict` every part must exist."""
        found: list[int | None] = [None] * len(jax.tree.leaves(state))
        for part, period in periods.items():
            mine = [i for i, name in enumerate(names(state)) if f"/{part}/" in f"/{name}/"]
            if strict and not mine:
                raise ValueError(f"state_sync_every must name parts of the state, {names(state)}, got {part!r}")
            for i in mine:
                if found[i] is not None:
                    raise ValueError(f"state_sync_every names {names(state)[i]!r} twice, the second time as {part!r}")
                found[i] = period
        return found

    def init(params: Any) -> PeriodicSyncState:
        check_leaves("periodic_sync", params, complex_leaves=True)
        state = tx.init(as_arrays(params))
        if jax.tree.leaves(params):
            of_leaves(state, strict=True)
        return PeriodicSyncState(jnp.zeros((), jnp.int32), state)

    def meet(period: int | None, x: Any, state: Any) -> tuple[Any, Any]:
        """The averaged parameters (None where they are not averaged), and the state in which all parts with this period
        (None: any period) are averaged."""
        leaves, structure = jax.tree.flatten(state)
        mine = [k is not None and period in (k, None) for k in of_leaves(state)] if leaves else []
        some = [leaf for leaf, own in zip(leaves, mine, strict=True) if own]
        x, means = wide_mean("periodic_sync", (x if period in (K, None) else None, some), axis_name)
        means = iter(means)
        new = [next(means).astype(leaf.dtype) if own else leaf for leaf, own in zip(leaves, mine, strict=True)]
        return x, alike(structure.unflatten(new), state)

    def update(updates: Any, state: Any, params: Any = None, *, sync: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, params = checked("periodic_sync", updates, params, axis_name)
        count = increment(state.count)
        u, own = tx.update(updates, state.inner, params, **extra)
        u, x = alike(u, params), reached(params, u)
        for period in [None] if sync is not None else sorted({K, *periods.values()}):

            def met(period: int | None = period, u: Any = u, own: Any = own) -> tuple[Any, Any]:
                mean, new = meet(period, x, own)
                return (u if mean is None else led(mean, params, u)), new

            u, own = either(sync, ends_round(count, period or 1), met, (u, own))
        return u, PeriodicSyncState(count, own)

    def synchronize(params: Any, state: PeriodicSyncState) -> tuple[Any, PeriodicSyncState]:
        check_leaves("synchronize", params, complex_leaves=True)
        x, own = meet(None, widen(params), state.inner)
        return plain(x, params), state._replace(inner=own)

    update.synchronize = synchronize  # pyright: ignore[reportFunctionMemberAccess]
    return optax.GradientTransformationExtraArgs(init, update)


class _AdoptState(NamedTuple):
    """Whether v has been initialised, and v."""

    started: jax.Array
    v: Any


def _by_the_step_before(b2: Any, eps: Any) -> optax.GradientTransformationExtraArgs:
    """g / max(sqrt(v), eps) with v of the step before; 0 in the first step."""

    def init(params: Any) -> _AdoptState:
        return _AdoptState(jnp.zeros((), jnp.int32), zeros(params, real=True))

    def update(updates: Any, state: _AdoptState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        first = state.started == 0

        def divided(g: jax.Array, v: jax.Array) -> jax.Array:
            size = jnp.maximum(jnp.sqrt(v), scalar(eps, v))
            return jnp.where(first, jnp.zeros_like(g), g / jnp.where(first, jnp.ones_like(size), size))

        def followed(v: jax.Array, g: jax.Array) -> jax.Array:
            return jnp.where(first, jnp.square(jnp.abs(g)), ema_of_square(v, g, b2))

        new = jax.tree.map(divided, updates, state.v)
        return new, _AdoptState(jnp.ones_like(state.started), jax.tree.map(followed, state.v, updates))

    return transformation("mt_dao", init, update, complex_leaves=True)


def mt_dao(
    learning_rate: ScalarOrSchedule,
    *,
    b1s: Sequence[Any] = (0.995,),
    weights: Sequence[Any] = (0.9,),
    b2: Scalar = 0.9999,
    eps: Scalar = 1e-8,
    sync_every: int = 32,
    momentum_sync_every: Sequence[int] | None = None,
    second_moment_sync_every: int | None = None,
    base: str = "adam",
    max_norm: Scalar | None = None,
    axis_name: Any = "replica",
) -> optax.GradientTransformationExtraArgs:
    """Local updates by an optimizer with momenta of several timescales, each averaged at a period that suits its decay.

    Equations of replica k at step t = 1, 2, ..., with the momenta j = 1, ..., N:

        g    = clip(g_k, max_norm)
        u_j <- b_j u_j + (1 - b_j) g
        v   <- b2 v + (1 - b2) g^2
        x   <- x - learning_rate ((1 - sum_j w_j) g + sum_j w_j u_j) / (sqrt(v) + eps)

    Then x is averaged over replicas where t mod K_x = 0, u_j where t mod K_j = 0, and v where t mod K_v = 0. Base
    "sgdm" has no denominator. With "adopt", g / max(sqrt(v), eps) with v of the previous step replaces g, there is no
    other denominator, and the first step only initialises v.

    The half-life of a momentum of decay b is ln(1/2) / ln(b) steps, which should be longer than its period. The method
    is `periodic_sync` around `gk.multi_timescale_adam`.

    Args:
      learning_rate: step size >= 0, or a schedule of the steps; without bias correction the first steps are long.
      b1s: decays of the momenta, each in [0, 1). Default one, 0.995 (paper's quasi-hyperbolic form).
      weights: one per decay, each in [0, 1], with a sum of at most 1; the gradient has the rest. Default 0.9.
      b2: decay of the second moment, in [0, 1). Default 0.9999 (paper).
      eps: added to the root (with "adopt", the smallest root), >= 0. Default 1e-8.
      sync_every: K_x >= 1. Default 32 (paper).
      momentum_sync_every: K_j >= 1, one per momentum. Default None: K_x for all.
      second_moment_sync_every: K_v >= 1. Default None: K_x.
      base: "adam" (default), "adopt" (paper's) or "sgdm", which has no second moment.
      max_norm: the gradient is clipped to this norm, > 0. Default None: no clipping.
      axis_name: name of the axis of the replicas. Default "replica".

    Returns:
      A transformation that needs `params`. State: N + 1 words per parameter, once per replica ("sgdm": N). Collectives:
      1/K_x + sum_j 1/K_j + 1/K_v all-reduces of the parameters' size per step, in float32.

    Raises:
      ValueError: a hyperparameter outside its range; weights that add up to more than 1; not one of each per decay.

    Example:
      >>> tx = mt_dao(1.0, b1s=(0.5,), weights=(0.5,), sync_every=1, base="sgdm")
      >>> x, g = jnp.array([0.0, 0.0]), jnp.array([1.0, 3.0])
      >>> u, _ = jax.vmap(tx.update, axis_name="replica")(g, jax.vmap(tx.init)(x), x)
      >>> print(u)  # of the mean gradient, 2: 0.5 of it and 0.5 of the momentum
      [-1.5 -1.5]

    Reference: Iacob et al. MT-DAO: Multi-Timescale Distributed Adaptive Optimizers with Local Updates. 2025, arXiv
    2510.05361. There is no public code; averages are taken after the step, and "adopt" is as in Taniguchi et al. 2024
    (its first step only initialises v).
    """
    for name, given in (("b1s", b1s), ("weights", weights)):
        if not isinstance(given, list | tuple):
            raise ValueError(
                f"{name} must be a sequence with a number per momentum, got {given!r}; write {name}=(0.9,)"
            )
    b1s, weights = tuple(b1s), tuple(weights)
    K = checks.integer("sync_every", sync_every, 1)
    checks.choice("base", base, BASES)
    checks.real("b2", b2, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    K_j = (K,) * len(b1s) if momentum_sync_every is None else tuple(momentum_sync_every)
    K_v = checks.integer("second_moment_sync_every", second_moment_sync_every, 1, optional=True) or K
    if len(K_j) != len(b1s):
        raise ValueError(f"momentum_sync_every must be one period per decay, got {len(K_j)} for {len(b1s)}")
    periods = {f"momenta/{j}": checks.integer("momentum_sync_every", k, 1) for j, k in enumerate(K_j)}
    if base == "adam":
        inner = multi_timescale_adam(learning_rate, b1s=b1s, weights=weights, b2=b2, eps=eps)
    else:
        before = [_by_the_step_before(b2, eps)] if base == "adopt" else []
        momenta = scale_by_multi_momentum(b1s, weights=weights)
        inner = optax.chain(*before, momenta, scale_by_learning_rate(learning_rate))
    if base != "sgdm":
        periods["v"] = K_v
    if max_norm is not None:
        inner = optax.chain(clip_by_global_norm(max_norm), inner)
    return periodic_sync(inner, sync_every=K, state_sync_every=periods, axis_name=axis_name)


register(periodic_sync, form="strategy", paper=PAPER, collectives="replicas", example={"sync_every": 2})
register(mt_dao, form="strategy", paper=PAPER, words=2, sent=3, collectives="replicas", example={"sync_every": 2})
