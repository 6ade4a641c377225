"""Local updates: every replica trains separately, and at the end of every round all get the same parameters."""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from gradkit import checks
from gradkit.arguments import Rule
from gradkit.catalogue import Paper, register
from gradkit.engine.codecs import nearest
from gradkit.engine.core import as_arrays, increment, wide_dtype, widen
from gradkit.engine.matching import check_leaves, check_match
from gradkit.parallel.compressors import compressor_of
from gradkit.parallel.replicas import alike, check_own, wide_mean
from gradkit.types import PyTree

PAPER = Paper("Local SGD Converges Fast and Communicates Little", "Stich", 2018, "1805.09767")
NEVER = np.iinfo(np.int32).max


class LocalUpdatesState(NamedTuple):
    """Number of steps; the step that ends this round; with an outer optimizer the parameters at the start of the round,
    and its state (else two empty nodes); the inner state; the state of the compressor of the exchange."""

    count: jax.Array
    next_sync: jax.Array
    start: Any
    outer: Any
    inner: Any
    exchange: Any = optax.MaskedNode()


def local_updates(
    inner: optax.GradientTransformation,
    *,
    sync_every: Any,
    axis_name: Any = "replica",
    outer: optax.GradientTransformation | None = None,
    average_state: bool = False,
    exchange: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lets replicas train separately, and averages them at the end of each round.

    Equations of replica k of W at every step:

        x_k <- x_k + inner(g_k(x_k))

    At a step that ends a round, without an outer optimizer:

        x_k <- (1/W) sum_j x_j

    With an outer optimizer, and the point theta where the round started:

        D     = (1/W) sum_j (theta - x_j)              the pseudo-gradient, with the sign of a gradient
        theta <- theta + outer(D)
        x_k   <- theta

    With an `exchange`, D is the result of a compressor of gk.parallel for theta - x_j; without an outer optimizer
    theta - D then replaces the mean.

    A round that starts after t steps has H(t) steps; H is read at its start. The transformation is written for one
    replica: run it once per replica, under an axis of `jax.vmap` or `jax.shard_map`. `update` has an extra argument
    `sync`. With sync=None (default) the state decides whether the round ends: one program for all steps, with a branch,
    of which `jax.vmap` runs both sides, so on a mesh prefer `jax.shard_map` for it. sync=False is a step in the middle
    of a round, which compiles without a collective. sync=True is a step that ends a round, whatever the state says; the
    next round starts there.

    Adding an update to parameters rounds: the results are equal on all replicas where the parameters were within a
    factor of two of the new point, and equal up to rounding elsewhere (no number added to 1 + 2^-23 gives 2^-40 in
    float32). The differences do not accumulate over rounds. For the same bits on all replicas, step with sync=False and
    end a round by `synchronize`, which sets the parameters.

    Args:
      inner: the transformation of each replica.
      sync_every: steps of a round. An integer >= 1; a callable, number of steps made when a round starts -> its
        steps, in JAX (below 1 counts as 1), such as the quadratic rule; or an array of booleans, one per step, true
        where a round ends (after its last entry no round ends). An integer may be injected (`gk.inject_hyperparams`),
        the others not.
      axis_name: name of the axis of the replicas, or a tuple of names. Default "replica".
      outer: steps from the start of the round with the pseudo-gradient. Default None: the mean of the replicas.
      average_state: whether floating leaves of the inner state are averaged with the parameters; counters and keys
        never are. Default False: every replica keeps its momenta (Stich; DiLoCo).
      exchange: a compressor of theta - x_j, such as `gk.parallel.int8_compressor()`, or one inside
        `gk.parallel.error_feedback(...)`; it exchanges over `axis_name`. Default None: the mean in float32.

    Returns:
      A transformation that needs `params`. State: that of `inner`, and with `outer` its own and 1 word per parameter,
      a float32 copy of the parameters at the start of the round (also with an `exchange`, and then its state); all of
      it once per replica. Collectives: one all-reduce of the parameters per round, in float32, or those of `exchange`.

    Raises:
      ValueError: `sync_every` is none of the three, or below 1; leaves of integers; no axis of this name (at a step
        that ends a round); `params` missing at `update`.

    Example:
      >>> tx = local_updates(optax.sgd(0.5), sync_every=2)
      >>> x = jnp.array([2.0, 6.0])  # one number on two replicas, and the gradient 4, 0
      >>> state = jax.vmap(tx.init)(x)
      >>> step = jax.vmap(tx.update, axis_name="replica")
      >>> updates, state = step(jnp.array([4.0, 0.0]), state, x)
      >>> print(x := x + updates)
      [0. 6.]
      >>> updates, state = step(jnp.array([4.0, 0.0]), state, x)
      >>> print(x + updates)
      [2. 2.]

    Reference: Stich. Local SGD Converges Fast and Communicates Little. 2018, arXiv 1805.09767. With `outer`: Douillard
    et al. 2023, arXiv 2311.08105; the sign of D is that of their code's gradients. A round whose length is a callable:
    Gu et al. A Quadratic Synchronization Rule for Distributed Deep Learning. 2023, arXiv 2310.14423.
    """
    checks.axis_name("axis_name", axis_name, optional=False)
    checks.switch(average_state=average_state)
    period = _period(sync_every)
    checks.transformation(inner=inner, **({} if outer is None else {"outer": outer}))
    inner = optax.with_extra_args_support(inner)
    compressor = None if exchange is None else compressor_of(exchange)
    if compressor is not None and outer is None:
        outer = optax.sgd(1.0)
    far = None if outer is None else optax.with_extra_args_support(outer)

    def init(params: Any) -> LocalUpdatesState:
        check_leaves("local_updates", params, complex_leaves=True)
        params = as_arrays(params)
        count = jnp.zeros((), jnp.int32)
        start = optax.MaskedNode() if far is None else anchor(params)
        there = optax.MaskedNode() if far is None else far.init(start)
        kept = optax.MaskedNode() if compressor is None else compressor.init(start)
        return LocalUpdatesState(count, _end(count, period), start, there, inner.init(params), kept)

    def met(x: Any, state: LocalUpdatesState, key: Any = None) -> tuple[Any, LocalUpdatesState]:
        """The new parameters of all replicas from those that they reached, and the new state."""
        start, there, own, kept = state.start, state.outer, state.inner, state.exchange
        if far is None:
            x = wide_mean("local_updates", x, axis_name)
        else:
            D = jax.tree.map(jnp.subtract, start, x)
            if compressor is None:
                D = wide_mean("local_updates", D, axis_name)
            else:
                D, _, kept = compressor.exchange(D, kept, axis_name, key=key)
            moved, there = far.update(D, there, start)
            x = start = jax.tree.map(lambda s, u: s + u.astype(s.dtype), start, moved)
        if average_state:
            own = _mean_of_floating(own, axis_name)
        new = LocalUpdatesState(state.count, _end(state.count, period), start, there, own, kept)
        return x, alike(new, state)

    def update(updates: Any, state: Any, params: Any = None, *, sync: Any = None, **extra: Any) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("local_updates needs params: call update(grads, state, params)")
        check_match("local_updates", updates, params)
        check_leaves("local_updates", updates, complex_leaves=True)
        check_own("local_updates", updates, axis_name)
        updates, params = as_arrays(updates), as_arrays(params)
        count = increment(state.count)
        updates, own = inner.update(updates, state.inner, params, **extra)
        state = state._replace(count=count, inner=own)

        def meet() -> tuple[Any, LocalUpdatesState]:
            reached = jax.tree.map(lambda x, u: x + u.astype(x.dtype), widen(params), updates)
            x, new = met(reached, state, extra.get("key"))
            return jax.tree.map(step_to, x, params, updates), new

        if sync is None:
            sync = count >= state.next_sync
        if isinstance(sync, bool | np.bool_):
            return meet() if sync else (updates, state)
        # Both branches must return the same types, the same on all replicas or varying.
        apart = (alike(updates, params), state)
        return jax.lax.cond(sync, lambda: alike(meet(), apart), lambda: apart)

    def meet_exactly(params: Any, state: LocalUpdatesState) -> tuple[Any, LocalUpdatesState]:
        check_leaves("synchronize", params, complex_leaves=True)
        x, state = met(widen(params), state)
        return alike(jax.tree.map(lambda new, old: new.astype(old.dtype), x, params), params), state

    update.synchronize = meet_exactly  # pyright: ignore[reportFunctionMemberAccess]
    return optax.GradientTransformationExtraArgs(init, update)


def synchronize(tx: optax.GradientTransformation, params: PyTree, state: Any) -> tuple[Any, Any]:
    """Ends a round: the exchange of `local_updates` by itself, after which all replicas have the same bits.

    It sets parameters where `update` can only add to them. With it, training is two programs: steps without a
    collective, and this. Call it also at the end of a run that stops in the middle of a round.

    Args:
      tx: the transformation that `local_updates` (or `local_sgd`, `diloco`) returned, not a chain around it.
      params: of one replica, after its updates were applied.
      state: of one replica.

    Returns:
      (params, state) at the start of the next round. Run it as `tx.update`, under the axis of the replicas.
      Collectives: one all-reduce of the parameters (and of the inner state, with `average_state`).

    Raises:
      ValueError: `tx` has no exchange; leaves of integers; no axis of this name.

    Example:
      >>> tx = local_updates(optax.sgd(0.5), sync_every=2)
      >>> x = jnp.array([2.0, 6.0])
      >>> x, state = jax.vmap(lambda x, s: synchronize(tx, x, s), axis_name="replica")(x, jax.vmap(tx.init)(x))
      >>> print(x)
      [4. 4.]
    """
    checks.transformation(tx=tx)
    meet = getattr(tx.update, "synchronize", None)
    if meet is None:
        raise ValueError(
            "synchronize: tx must be the transformation that local_updates or a strategy returned, got one without an "
            "exchange; pass it without a chain or wrapper around it"
        )
    return meet(params, state)


def sync_steps(sync_every: Any, steps: int) -> np.ndarray:
    """The steps that end a round, for a loop that chooses between its two programs in advance.

    Args:
      sync_every: as in `local_updates`.
      steps: of the whole run, >= 0.

    Returns:
      Booleans of length `steps`. The last is false where the run stops in the middle of a round.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> sync_steps(3, 8).tolist()
      [False, False, True, False, False, True, False, False]
      >>> sync_steps(lambda count: 1 + count, 8).nonzero()[0].tolist()  # rounds of 1, 2 and 4 steps, and one cut short
      [0, 2, 6]
    """
    period = _period(sync_every)
    steps = checks.integer("steps", steps)
    ends = np.zeros(steps, bool)
    count = int(_end(jnp.zeros((), jnp.int32), period))
    while count <= steps:
        ends[count - 1] = True
        count = int(_end(jnp.asarray(count, jnp.int32), period))
    return ends


def anchor(params: PyTree) -> Any:
    """A float32 (or wider) copy of parameters, in separate buffers, because the parameters may be donated; for
    `jax.ShapeDtypeStruct`s again `jax.ShapeDtypeStruct`s."""

    def copy(x: Any) -> Any:
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, wide_dtype(x.dtype), sharding=x.sharding)
        return jnp.array(x, wide_dtype(x.dtype), copy=True)

    return jax.tree.map(copy, params)


def _period(sync_every: Any) -> Callable[[jax.Array], Any]:
    """The function from the number of steps made to the length of the round that starts there."""
    sync_every = sync_every.value if isinstance(sync_every, Rule) else sync_every
    if callable(sync_every):
        return sync_every
    if isinstance(sync_every, list | tuple | np.ndarray | jax.Array) and not isinstance(sync_every, Tracer):
        ends = np.asarray(sync_every)
        if ends.dtype == bool and ends.ndim == 1:
            left = np.full(len(ends) + 1, NEVER, np.int32)
            for t in reversed(range(len(ends))):
                left[t] = 1 if ends[t] else min(int(left[t + 1]), NEVER - 1) + 1
            return lambda count: jnp.asarray(left)[jnp.minimum(count, len(ends))]
    array = isinstance(sync_every, jax.Array) and sync_every.shape == ()
    if array and jnp.issubdtype(sync_every.dtype, jnp.integer):
        if isinstance(sync_every, Tracer):
            return lambda count: sync_every
        sync_every = int(sync_every)
    whole = isinstance(sync_every, numbers.Integral) and not isinstance(sync_every, bool)
    if not whole or not 1 <= int(sync_every) <= checks.LARGEST:
        upper = f" and <= {checks.LARGEST}" if whole and int(sync_every) > 1 else ""
        raise ValueError(
            f"sync_every must be an integer >= 1{upper}, a callable or an array of booleans, got {sync_every!r}"
        )
    return lambda count: int(sync_every)


def _end(count: jax.Array, period: Callable[[jax.Array], Any]) -> jax.Array:
    """The step that ends the round which starts after `count` steps."""
    H = jnp.asarray(period(count))
    if H.shape != () or not jnp.issubdtype(H.dtype, jnp.integer):
        raise ValueError(f"sync_every must return an integer, got {H.dtype} of shape {H.shape}")
    return count + jnp.clip(H.astype(jnp.int32), 1, NEVER - count)


def _mean_of_floating(tree: Any, axis_name: Any) -> Any:
    """The tree with floating leaves averaged over replicas; the others unchanged."""
    leaves, structure = jax.tree.flatten(tree)
    floating = [jnp.issubdtype(x.dtype, jnp.inexact) for x in leaves]
    means = iter(wide_mean("local_updates", [x for x, f in zip(leaves, floating, strict=True) if f], axis_name))
    return structure.unflatten([next(means).astype(x.dtype) if f else x for x, f in zip(leaves, floating, strict=True)])


def step_to(x: jax.Array, p: jax.Array, like: jax.Array) -> jax.Array:
    """The update from p to x, with x rounded to the dtype of p."""
    if jnp.finfo(p.dtype).bits < 32:
        x = nearest(x, p.dtype)
    return (x - p.astype(x.dtype)).astype(like.dtype)


register(
    local_updates,
    form="strategy",
    paper=PAPER,
    collectives="replicas",
    golden=("parallel/local_sgd",),
    example={"sync_every": 2},
    notes="around any transformation",
)
