"""Backup workers: a step uses the k earliest of n gradients, with the k that maximises the gain per unit of time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype
from gradkit.parallel.compressors import number_of_replicas
from gradkit.types import PyTree, Scalar

PAPER = Paper("Dynamic backup workers for parallel machine learning", "Xu, Neglia, Sebastianelli", 2020, "2004.14696")


def earliest(arrival_times: jax.Array, k: Any) -> jax.Array:
    """(n,) booleans of the k earliest; of equal times, the lowest numbers. Infinity and NaN come last."""
    order = jnp.argsort(jnp.where(jnp.isnan(arrival_times), jnp.inf, arrival_times), stable=True)
    rank = jnp.zeros(order.shape, jnp.int32).at[order].set(jnp.arange(len(order), dtype=jnp.int32))
    return rank < k


def backup_mean(gradients: PyTree, arrival_times: Any, k: Any, *, axis_name: Any = None) -> Any:
    """The mean of the gradients of the k earliest workers.

    Equations:

        mean = (1/k) sum over the k earliest of g_i

    Args:
      gradients: of all workers, a tree with a leading axis (n, ...); with `axis_name`, that of this replica.
      arrival_times: (n,) numbers, the same on all replicas. Infinity or NaN for a worker that does not arrive.
      k: number of workers that are waited for, from 1 to n; may be traced: another k needs no new program.
      axis_name: axis of `vmap` or `shard_map` over workers. Default None: the gradients are stacked.

    Returns:
      A tree like one gradient, in its dtypes, summed in float32 or wider. Gradients of late workers are not read.
      Collectives: with `axis_name` one all-reduce of the tree.

    Raises:
      ValueError: k below 1 or above n, another number of gradients or replicas than of times.

    Example:
      >>> print(backup_mean(jnp.array([1.0, 5.0, 3.0]), jnp.array([0.2, 9.0, 0.1]), 2))
      2.0

    Reference: Xu, Neglia, Sebastianelli. Dynamic backup workers for parallel machine learning. 2020, arXiv 2004.14696.
    """
    times = jnp.asarray(arrival_times, float)
    n = times.shape[0]
    if checks.readable(k) is not None:
        checks.integer("k", k, 1, maximum=n)
    counts = earliest(times, k)

    def share(x: Any, mine: jax.Array) -> jax.Array:
        wide = jnp.asarray(x).astype(wide_dtype(jnp.asarray(x).dtype))
        mine = jnp.broadcast_to(mine.reshape(*mine.shape, *[1] * (wide.ndim - mine.ndim)), wide.shape)
        return jnp.where(mine, wide, jnp.zeros_like(wide)) / jnp.asarray(k, wide.dtype)

    if axis_name is not None:
        replicas = number_of_replicas("backup_mean", axis_name)
        if replicas != n:
            raise ValueError(f"arrival_times must be one per replica, got {n} and {replicas} replicas")
        own = counts[jax.lax.axis_index(axis_name)]
        total = jax.lax.psum(jax.tree.map(lambda x: share(x, own), gradients), axis_name)
    else:
        if any(jnp.ndim(x) == 0 or jnp.shape(x)[0] != n for x in jax.tree.leaves(gradients)):
            raise ValueError(f"gradients must have a leading axis of {n} workers, one per arrival time, on every leaf")
        total = jax.tree.map(lambda x: jnp.sum(share(x, counts), axis=0), gradients)
    return jax.tree.map(lambda t, x: t.astype(jnp.asarray(x).dtype), total, gradients)


class BackupState(NamedTuple):
    """The estimates V, |grad F|^2 and L of the last D rounds (NaN where there is none); the sums and numbers of arrival
    times by (number waited for in the previous round, number of the arrival); the last loss; k, and the previous k; the
    number of rounds."""

    variance: jax.Array
    norm_sq: jax.Array
    smoothness: jax.Array
    time_sum: jax.Array
    time_count: jax.Array
    loss: jax.Array
    k: jax.Array
    before: jax.Array
    count: jax.Array


class BackupWorkers(NamedTuple):
    """Three pure functions, all jittable.

    Attributes:
      init: () -> `BackupState`, which waits for all workers.
      choose: state -> k, for the next round.
      observe: (state, gradients, loss, times) -> state with its next k: the stacked gradients of all workers, of which
        the k earliest are read, the loss that they were computed at, and all arrival times, of which the k earliest are
        read.
    """

    init: Callable[[], BackupState]
    choose: Callable[[BackupState], jax.Array]
    observe: Callable[..., BackupState]


def _mean(x: jax.Array) -> jax.Array:
    """The mean of the finite entries; NaN where there is none."""
    there = jnp.isfinite(x)
    total = jnp.sum(jnp.where(there, x, jnp.zeros_like(x)))
    count = jnp.sum(there).astype(x.dtype)
    return jnp.where(count > 0, total / jnp.maximum(count, jnp.ones_like(count)), jnp.full_like(total, jnp.nan))


def dynamic_backup_workers(
    workers: int, learning_rate: Scalar, *, window_size: int = 20, loss_increase: Scalar = 1.1
) -> BackupWorkers:
    """Decides after every round how many workers the next one waits for.

    Equations, with the variance V of the gradient of one worker, the smoothness L of the loss F, eta = learning_rate,
    and the mean time T(k) at which the k-th gradient of a round arrives:

        Gain(k) = (eta - L eta^2 / 2) |grad F|^2 - (L eta^2 / 2) V / k          expected decrease by k gradients
        k       = argmax Gain(k) / T(k)

    Estimates from the k gradients of a round with their mean g, averaged over the last D rounds; L^ is the L for which
    Gain(k) is the decrease of the loss:

        V^ = (1 / (k - 1)) sum |g_i - g|^2
        |grad F|^2 ~ max(|g|^2 - V^ / k, 0)

    In a loop, where `gradients` are stacked and `times` are measured:

        rules = gk.parallel.dynamic_backup_workers(8, 0.1)
        state = rules.init()
        ...
        g = gk.parallel.backup_mean(gradients, times, rules.choose(state))
        state = rules.observe(state, gradients, loss, times)

    Args:
      workers: n >= 1.
      learning_rate: eta > 0, of the step that uses the mean.
      window_size: D, rounds over which estimates are averaged, >= 1. Default 20.
      loss_increase: > 0; where the loss grows by more than this factor, the next round waits for at least one worker
        more. Default 1.1.

    Returns:
      A `BackupWorkers`. State: 3 D + 2 n^2 numbers.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> rules = dynamic_backup_workers(3, 0.1)
      >>> int(rules.choose(rules.init()))  # nothing is known yet
      3

    Reference: Xu, Neglia, Sebastianelli. Dynamic backup workers for parallel machine learning. 2020, arXiv 2004.14696.
    The estimators are the paper's; the length of its windows and its rule for a growing loss could not be checked
    against its text, and are arguments here. T(k) of a pair not yet seen is the mean over all earlier rounds, and of a
    k never seen the largest known time, so that untried k look cheap and are tried.
    """
    n = checks.integer("workers", workers, 1)
    checks.real("learning_rate", learning_rate, "(0, inf)")
    D = checks.integer("window_size", window_size, 1)
    checks.real("loss_increase", loss_increase, "(0, inf)")

    def init() -> BackupState:
        ring = lambda: jnp.full((D,), jnp.nan, jnp.float32)  # noqa: E731
        times = lambda: jnp.zeros((n, n), jnp.float32)  # noqa: E731
        k = lambda: jnp.asarray(n, jnp.int32)  # noqa: E731
        nothing = jnp.asarray(jnp.nan, jnp.float32)
        return BackupState(ring(), ring(), ring(), times(), times(), nothing, k(), k(), jnp.zeros((), jnp.int32))

    def times_of(state: BackupState) -> jax.Array:
        """(n,): T(k) for a round after one that waited for the current k, nondecreasing in k."""
        own_sum, own_count = state.time_sum[state.k - 1], state.time_count[state.k - 1]
        any_sum, any_count = jnp.sum(state.time_sum, axis=0), jnp.sum(state.time_count, axis=0)
        one = jnp.ones_like(own_count)
        known = jnp.where(own_count > 0, own_sum / jnp.maximum(own_count, one), any_sum / jnp.maximum(any_count, one))
        return jax.lax.cummax(known)

    def gains_of(state: BackupState) -> jax.Array:
        eta = jnp.asarray(learning_rate, jnp.float32)
        V, G, L = _mean(state.variance), _mean(state.norm_sq), _mean(state.smoothness)
        half = L * jnp.square(eta) / 2
        return (eta - half) * G - half * V / jnp.arange(1, n + 1).astype(jnp.float32)

    def next_k(state: BackupState) -> jax.Array:
        gains, times = gains_of(state), times_of(state)
        rate = gains / jnp.maximum(times, jnp.full_like(times, jnp.finfo(jnp.float32).tiny))
        # Of equal gains per time the largest k: more gradients in the same time.
        best = n - jnp.argmax(rate[::-1]).astype(jnp.int32)
        return jnp.where(jnp.any(gains > 0) & jnp.isfinite(gains).all(), best, jnp.asarray(n, jnp.int32))

    def observe(state: BackupState, gradients: Any, loss: Any, times: Any) -> BackupState:
        eta, k = jnp.asarray(learning_rate, jnp.float32), state.k.astype(jnp.float32)
        arrivals = jnp.asarray(times, jnp.float32)
        counts = earliest(arrivals, state.k)
        mean = backup_mean(gradients, arrivals, state.k)
        norm_sq, spread = jnp.zeros(()), jnp.zeros(())
        for g, x in zip(jax.tree.leaves(mean), jax.tree.leaves(gradients), strict=True):
            norm_sq += jnp.sum(jnp.square(g)).astype(norm_sq.dtype)
            apart = jnp.square(x - g[None]).reshape(n, -1).sum(1).astype(spread.dtype)
            spread += jnp.sum(jnp.where(counts, apart, jnp.zeros_like(apart)))
        one = jnp.ones_like(k)
        variance = (spread / jnp.maximum(k - one, one)).astype(jnp.float32)
        variance = jnp.where(
            k > 1, variance, _mean(state.variance)
        )  # One gradient has no variance: use the previous ones.
        estimate = norm_sq.astype(jnp.float32) - jnp.where(jnp.isfinite(variance), variance, 0.0) / k
        # The decrease of the loss by the last round's step, and the smoothness that would explain it.
        V, G, last_k = _mean(state.variance), _mean(state.norm_sq), state.before.astype(jnp.float32)
        loss = jnp.asarray(loss, jnp.float32)
        found = 2 * (eta * G - (state.loss - loss)) / (jnp.square(eta) * (G + V / last_k))
        at = state.count % D
        order = jnp.argsort(jnp.where(jnp.isnan(arrivals), jnp.inf, arrivals))
        seen = (jnp.arange(n) < state.k).astype(jnp.float32)
        sorted_times = jnp.where(seen > 0, arrivals[order], jnp.zeros_like(arrivals))
        row = state.before - 1
        new = BackupState(
            state.variance.at[at].set(variance),
            state.norm_sq.at[at].set(jnp.maximum(estimate, jnp.zeros_like(estimate))),
            state.smoothness.at[at].set(jnp.where(found > 0, found, jnp.full_like(found, jnp.nan))),
            state.time_sum.at[row].add(sorted_times),
            state.time_count.at[row].add(seen),
            loss,
            state.k,
            state.k,
            state.count + 1,
        )
        grew = loss > jnp.asarray(loss_increase, jnp.float32) * state.loss
        k = jnp.where(grew, jnp.maximum(next_k(new), jnp.minimum(state.k + 1, n)), next_k(new))
        return new._replace(k=k)

    return BackupWorkers(init, lambda state: state.k, observe)


register(
    dynamic_backup_workers,
    form="program",
    paper=PAPER,
    delay="the slowest are not waited for",
    notes="how many of the workers a round waits for",
)
register(
    backup_mean,
    form="program",
    paper=PAPER,
    delay="the slowest are not waited for",
    notes="the mean of the earliest; another number is no new program",
)
