"""Streaming DiLoCo: parameters are averaged one fragment at a time, while training continues."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import as_arrays, increment, scalar, widen
from gradkit.engine.matching import check_leaves, check_match
from gradkit.leaves import names
from gradkit.parallel.compressors import compressor_of
from gradkit.parallel.diloco import outer_momentum_sgd
from gradkit.parallel.local_updates import anchor, step_to
from gradkit.parallel.replicas import alike, check_own, wide_mean
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper("Streaming DiLoCo with overlapping communication", "Douillard et al.", 2025, "2501.18512")
NAME = "streaming_diloco"


class StreamingDilocoState(NamedTuple):
    """The number of steps; theta; the state of the outer optimizer and of a compressor for each fragment; the inner
    state."""

    count: jax.Array
    start: Any
    outer: Any
    exchange: Any
    inner: Any

    exact_fields = ("start",)


def _labels(fragments: Any, params: Any) -> tuple[list[int], int]:
    """The fragment of every leaf, in their order, and how many there are."""
    count = len(jax.tree.leaves(params))
    if isinstance(fragments, int | np.integer):
        F = int(fragments)
        if max(count, 1) < F:
            raise ValueError(
                f"{NAME}: fragments must be at most the number of leaves, got {F} for {count}; write fragments={count}"
            )
        return [i % F for i in range(count)], F
    tree = fragments(params) if callable(fragments) else fragments
    if jax.tree.structure(tree) != jax.tree.structure(params):
        raise ValueError(
            f"{NAME}: fragments must be an integer >= 1, or a number per leaf in a tree like the parameters "
            f"{names(params)}, got {tree!r}"
        )
    labels = [checks.integer("fragments", f) for f in jax.tree.leaves(tree)]
    F = max(labels, default=0) + 1
    if empty := sorted(set(range(F)) - set(labels)):
        raise ValueError(f"{NAME}: fragments must number the leaves from 0 without gaps, got none of {empty}")
    return labels, F


def _lengths(sync_every: int, F: int, delay: int) -> int:
    """h = sync_every / F; raises unless the lengths fit each other."""
    if sync_every % F:
        raise ValueError(
            f"sync_every must be a multiple of the {F} fragments, got {sync_every}; write {-(-sync_every // F) * F}"
        )
    if delay >= sync_every // F:
        raise ValueError(
            f"delay must be below sync_every / fragments = {sync_every // F}, got {delay}; write a smaller delay, or "
            "a larger sync_every"
        )
    return sync_every // F


def streaming_diloco(
    inner: optax.GradientTransformation,
    *,
    sync_every: int = 100,
    fragments: int | Callable[[Any], Any] | optax.Params = 1,
    delay: int = 0,
    mixing: Scalar = 0.0,
    outer_learning_rate: ScalarOrSchedule = 0.7,
    outer_momentum: Scalar = 0.9,
    outer_nesterov: bool = True,
    axis_name: Any = "replica",
    exchange: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """DiLoCo whose exchange is distributed over the round, and overlaps with the steps of the replicas.

    Equations, with F fragments of the leaves, a round of H steps, and h = H / F; fragment f is due after the steps
    t_due = (f + 1) h, (f + 1) h + H, ...:

        D_f     <- (1/W) sum_k (theta_f - x_kf)             all-reduced after step t_due - tau
        m_f     <- beta m_f + D_f
        theta_f <- theta_f - gamma (D_f + beta m_f)
        x_kf    <- (1 - alpha) theta_f + alpha x_kf         after step t_due, with x_kf of that step

    With F = 1, tau = 0 and alpha = 0 it is DiLoCo. No step before t_due uses what is sent after step t_due - tau. With
    tau > 0 the program of step t_due - tau + 1 sends, from the parameters that it begins with: its gradients and its
    exchange do not wait for each other. `update` has the extra argument `sync`:

    `sync=None` (default): the state knows which fragment is sent and which is due; one program for all steps.
    `sync=f`, an integer: fragment f is sent in this step, by a program with the collective of that fragment alone.
    `fragment_steps` says in which step. With a delay it needs nothing of this step's gradients.
    `sync=False` (or -1): nothing is sent, and the program has no collective. What was sent before and is due now is
    applied. `sync=True`: all fragments are sent and applied at once, without mixing.

    Args:
      inner: the transformation of each replica; the paper has AdamW.
      sync_every: H, a multiple of the number of fragments. Default 100 (paper).
      fragments: the number of fragments, >= 1: leaf i is in fragment i mod F (the paper's strided layers). Or the
        number of its fragment for every leaf, from 0 without gaps, in a tree like the parameters, or parameters -> such
        a tree. A leaf is in one fragment, also a leaf of stacked layers. Default 1.
      delay: tau, the steps that an exchange may take, 0 <= tau < h. Default 0; up to 5 in the paper.
      mixing: alpha in [0, 1], the weight of the replica's own parameters. Default 0; the paper has 0.5 with a delay.
        With 1 replicas never change by an exchange.
      outer_learning_rate: gamma >= 0, or a schedule of the rounds. Default 0.7 (DiLoCo).
      outer_momentum: beta in [0, 1]. Default 0.9.
      outer_nesterov: whether the outer momentum is Nesterov's. Default True.
      axis_name: name of the axis of the replicas. Default "replica".
      exchange: a compressor of the pseudo-gradients, as in `local_updates`. Default None: their mean in float32.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter (theta, m) and the inner state, once per
      replica; none for fragments that are being exchanged. Collectives: per round one all-reduce of each fragment, in
      float32, or those of `exchange`.

    Raises:
      ValueError: a hyperparameter outside its range; lengths that do not fit; leaves of integers; no axis of this name.

    Example:
      >>> tx = streaming_diloco(optax.sgd(1.0), sync_every=2, delay=1, mixing=0.5, outer_momentum=0.0)
      >>> x, g = jnp.array([8.0, 8.0]), jnp.array([0.0, 2.0])  # two replicas
      >>> state, step = jax.vmap(tx.init)(x), jax.vmap(tx.update, axis_name="replica")
      >>> for _ in range(2):  # after one step the mean has moved by 1, so theta is 8 - 0.7; it is due after the second
      ...     u, state = step(g, state, x)
      ...     x = x + u
      >>> print(x)
      [7.65 5.65]

    Reference: Douillard et al. Streaming DiLoCo with overlapping communication. 2025, arXiv 2501.18512. The results are
    those of torchft, which makes the outer step when a fragment is due; here it is made when it is sent (as in
    MaxText), which changes no parameter of a replica and saves a word of state. The paper sends floats of 4 bits; here
    `exchange=gk.parallel.int8_compressor(bits=4)` sends integers.
    """
    checks.axis_name("axis_name", axis_name, optional=False)
    checks.switch(outer_nesterov=outer_nesterov)
    checks.transformation(inner=inner)
    H, tau = checks.integer("sync_every", sync_every, 1), checks.integer("delay", delay)
    checks.real("mixing", mixing, "[0, 1]")
    if not callable(fragments):
        for f in jax.tree.leaves(fragments) or [fragments]:
            checks.integer("fragments", f, 1 if f is fragments else 0)
    own_names = ("outer_learning_rate", "outer_momentum")
    far = outer_momentum_sgd(own_names[0], outer_learning_rate, own_names[1], outer_momentum, outer_nesterov)
    tx = optax.with_extra_args_support(inner)
    compressor = None if exchange is None else compressor_of(exchange)

    def init(params: Any) -> StreamingDilocoState:
        check_leaves(NAME, params, complex_leaves=True)
        params = as_arrays(params)
        labels, F = _labels(fragments, params)
        _lengths(H, F, tau)
        start = anchor(params)
        parts = [_of(labels, f, jax.tree.leaves(start)) for f in range(F)]
        kept = () if compressor is None else tuple(map(compressor.init, parts))
        return StreamingDilocoState(jnp.zeros((), jnp.int32), start, tuple(map(far.init, parts)), kept, tx.init(params))

    def send(f: int, x: Any, state: StreamingDilocoState, labels: list[int], key: Any = None) -> StreamingDilocoState:
        """theta, m and the state of the compressor, for fragment f after its exchange."""
        theta, structure = jax.tree.flatten(state.start)
        mine = _of(labels, f, theta)
        D, kept = jax.tree.map(jnp.subtract, mine, _of(labels, f, jax.tree.leaves(x))), state.exchange
        if compressor is None:
            D = wide_mean(NAME, D, axis_name)
        else:
            D, _, own = compressor.exchange(D, kept[f], axis_name, key=key)
            kept = (*kept[:f], own, *kept[f + 1 :])
        u, there = far.update(D, state.outer[f], mine)
        new = iter(jax.tree.map(lambda s, u: s + u.astype(s.dtype), mine, u))
        start = structure.unflatten([next(new) if label == f else s for label, s in zip(labels, theta, strict=True)])
        outer = (*state.outer[:f], there, *state.outer[f + 1 :])
        return alike(state._replace(start=start, outer=outer, exchange=kept), state)

    def update(updates: Any, state: Any, params: Any = None, *, sync: Any = None, **extra: Any) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(f"{NAME} needs params: call update(grads, state, params)")
        check_match(NAME, updates, params)
        check_leaves(NAME, updates, complex_leaves=True)
        check_own(NAME, updates, axis_name)
        updates, params = as_arrays(updates), as_arrays(params)
        labels, F = _labels(fragments, params)
        h = _lengths(H, F, tau)
        known = isinstance(sync, bool | np.bool_) or (isinstance(sync, int | np.integer) and -1 <= sync < F)
        if sync is not None and not known:
            raise ValueError(f"sync must be None, True, False or a fragment from 0 to {F - 1}, got {sync!r}")
        count = increment(state.count)
        phase, key, every = count % H, extra.get("key"), isinstance(sync, bool | np.bool_)

        def sent(x: Any, state: StreamingDilocoState) -> StreamingDilocoState:
            """The state after this step has sent its part of x. A branch gets only what it changes, so it waits for
            nothing else."""
            elsewhere: Any = ()
            kept = state._replace(count=elsewhere, inner=elsewhere)
            for f in range(F):
                if sync is None:
                    now = phase == _phase(f, h, tau) % H
                    kept = jax.lax.cond(now, lambda s, f=f: send(f, x, s, labels, key), lambda s: s, kept)
                elif not every and sync == f:
                    kept = send(f, x, kept, labels, key)
            return kept._replace(count=state.count, inner=state.inner)

        if tau:
            state = sent(widen(params), state)
        updates, own = tx.update(updates, state.inner, params, **extra)
        x = jax.tree.map(lambda x, u: x + u.astype(x.dtype), widen(params), updates)
        state = state._replace(count=count, inner=own)
        if every and sync:
            for f in range(F):
                state = send(f, x, state, labels, key)
            return jax.tree.map(step_to, state.start, params, updates), state
        if not tau:
            state = sent(x, state)
        leaves = zip(labels, *map(jax.tree.leaves, (updates, params, state.start, x)), strict=True)
        new = [_taken(phase == (label + 1) * h % H, mixing, *one) for label, *one in leaves]
        return jax.tree.structure(updates).unflatten(new), state

    def meet_exactly(params: Any, state: StreamingDilocoState) -> tuple[Any, StreamingDilocoState]:
        check_leaves("synchronize", params, complex_leaves=True)
        labels, F = _labels(fragments, params)
        x = widen(params)
        for f in range(F):
            state = send(f, x, state, labels)
        return jax.tree.map(lambda new, old: alike(new.astype(old.dtype), old), state.start, params), state

    update.synchronize = meet_exactly  # pyright: ignore[reportFunctionMemberAccess]
    return optax.GradientTransformationExtraArgs(init, update)


def _of(labels: list[int], f: int, leaves: list[Any]) -> list[Any]:
    return [x for label, x in zip(labels, leaves, strict=True) if label == f]


def _phase(f: int, h: int, tau: int) -> int:
    """The step of the first round whose program sends fragment f: step t_due - tau, or with a delay the next one."""
    return (f + 1) * h - max(tau - 1, 0)


def _taken(due: jax.Array, mixing: Any, u: jax.Array, p: jax.Array, theta: jax.Array, x: jax.Array) -> jax.Array:
    """The update of a leaf: where its fragment is due, the one that leads to the mixture of theta and x."""
    a = scalar(mixing, x)
    return jnp.where(due, step_to(theta + a * (x - theta), p, u), u)


def fragment_steps(sync_every: int, fragments: int, steps: int, *, delay: int = 0) -> np.ndarray:
    """Which fragment each step sends, for a loop that picks its program ahead of time.

    Args:
      sync_every: H, a multiple of the number of fragments.
      fragments: the number of fragments, >= 1.
      steps: the number of steps of the whole run, >= 0.
      delay: tau, as in `streaming_diloco`. Default 0.

    Returns:
      Integers of length `steps`: what to give `update` as `sync`; -1 where nothing is sent.

    Raises:
      ValueError: an argument outside its range; lengths that do not fit.

    Example:
      >>> fragment_steps(6, 2, 8, delay=2).tolist()
      [-1, 0, -1, -1, 1, -1, -1, 0]
    """
    H, F = checks.integer("sync_every", sync_every, 1), checks.integer("fragments", fragments, 1)
    tau = checks.integer("delay", delay)
    h = _lengths(H, F, tau)
    reached = np.arange(1, checks.integer("steps", steps) + 1) + max(tau - 1, 0)
    return np.where(reached % h == 0, (reached // h - 1) % F, -1)


register(
    streaming_diloco,
    form="strategy",
    paper=PAPER,
    delay="as many steps as `delay` says",
    words=2,
    collectives="replicas",
    golden=("parallel/streaming_diloco",),
    example={"sync_every": 2},
)
