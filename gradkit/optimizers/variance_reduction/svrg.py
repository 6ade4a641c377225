"""SVRG: the gradient of a batch, minus the gradient of the same batch at a snapshot, plus the full gradient there."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar, transformation, widen, zeros

PAPER = Paper("Optimization Methods for Large-Scale Machine Learning", "Bottou, Curtis, Nocedal", 2016, "1606.04838")


class SvrgState(NamedTuple):
    """Number of steps since the last snapshot; whether a snapshot is due; the snapshot, the full gradient there, and in
    mode "average" the mean of the iterates since the last snapshot."""

    since: jax.Array
    due: jax.Array
    snapshot: Any
    full: Any
    mean: Any

    exact_fields = ("snapshot", "mean")  # parameters, which gk.precision(state=...) must not round

    def point(self, params: Any) -> Any:
        """The snapshot: the point at which the next update needs the gradient of its batch, and the full gradient if it
        is `due`."""
        fresh = params if self.mean is None else self.mean
        first = (self.since == 0) & (self.due > 0)  # no iterate yet: the snapshot is the parameters

        def choose(s: jax.Array, new: jax.Array, x: jax.Array) -> jax.Array:
            x = x.astype(s.dtype)
            return jnp.where(first, x, jnp.where(self.due > 0, new.astype(s.dtype), s))

        return jax.tree.map(choose, self.snapshot, fresh, params)


def svrg_estimator(update_interval: int, *, mode: str = "last") -> optax.GradientTransformationExtraArgs:
    """A link before any optimizer that reduces the noise of the batch in the gradient by a full gradient at a snapshot.

    Equations, with m = update_interval and the gradient g_t of the batch at both points:

        every m steps:   s = x (or the mean of the iterates since the last snapshot),   mu = full gradient at s
        v_t = g_t(x) - g_t(s) + mu

    The mean of v_t over batches is the full gradient at x, and its variance vanishes as x and s approach the optimum.
    Write `optax.chain(gk.svrg_estimator(2 * n), gk.sgd(0.1))`, then `tx.update(grads, state, params, grad_fn=...,
    full_grad_fn=...)`.

    Args:
      update_interval: m, steps between snapshots, >= 1; the first step takes one. The textbook advises one to a few
        passes over the data.
      mode: the snapshot is the "last" iterate or the "average" of those since the last snapshot. Default "last".

    Returns:
      A transformation that needs `params`, and one of each of two pairs of extra arguments:
      `grad_fn`, params -> gradient of this batch, or `snapshot_grads`, that gradient at `state.point(params)`;
      `full_grad_fn`, params -> gradient over all data, called only when a snapshot is due, or `full_grads`, that
      gradient at `state.point(params)`, read only when `state.due`. State: 2 words per parameter ("average": 3) and two
      counters. Elementwise: no collective of its own.

    Raises:
      ValueError: an argument outside its range; at `update`, extra arguments missing.

    Example:
      >>> data = jnp.array([1.0, 3.0])
      >>> tx, x = svrg_estimator(2), jnp.array(0.0)
      >>> state = tx.init(x)
      >>> extra = {"grad_fn": lambda x: x - data[0], "full_grad_fn": lambda x: x - data.mean()}
      >>> v, state = tx.update(x - data[0], state, x, **extra)
      >>> float(v)  # at the snapshot: the full gradient
      -2.0

    Reference: Bottou, Curtis, Nocedal. Optimization Methods for Large-Scale Machine Learning. 2016, arXiv 1606.04838;
    Johnson, Zhang. Accelerating Stochastic Gradient Descent using Predictive Variance Reduction. 2013. The textbook's
    outer loop with the average also restarts the iterates there; a link of a chain cannot move parameters, so here they
    do not restart.
    """
    update_interval = checks.integer("update_interval", update_interval, 1)
    checks.choice("mode", mode, ("last", "average"))

    def gradient(extra: Any, array: str, function: str) -> Any:
        if extra.get(array) is None and extra.get(function) is None:
            raise ValueError(
                f"svrg_estimator needs the extra argument {function} or {array}; call update(grads, state, params, "
                f"{function}=...)"
            )
        return extra.get(array), extra.get(function)

    def init(params: optax.Params) -> SvrgState:
        zero = jnp.zeros((), jnp.int32)
        return SvrgState(
            zero,
            jnp.ones((), jnp.int32),
            zeros(params),
            zeros(params),
            zeros(params) if mode == "average" else None,
        )

    def update(updates: Any, state: SvrgState, params: Any = None, **extra: Any) -> tuple[Any, SvrgState]:
        snapshot_grads, grad_fn = gradient(extra, "snapshot_grads", "grad_fn")
        full_grads, full_grad_fn = gradient(extra, "full_grads", "full_grad_fn")
        due = state.due > 0
        snapshot = state.point(params)
        there = widen(grad_fn(snapshot) if snapshot_grads is None else snapshot_grads)
        if full_grads is None:
            full = jax.lax.cond(due, lambda: widen(full_grad_fn(snapshot)), lambda: state.full)
        else:
            full = jax.tree.map(lambda new, old: jnp.where(due, new, old), widen(full_grads), state.full)
        since = jnp.where(due, 0, state.since) + 1

        def include(m: jax.Array, x: jax.Array) -> jax.Array:
            m = jnp.where(due, jnp.zeros_like(m), m)
            return m + (x - m) / scalar(since, x)

        mean = None if state.mean is None else jax.tree.map(include, state.mean, params)
        v = jax.tree.map(lambda g, s, mu: g - s + mu, updates, there, full)
        again = (since >= update_interval).astype(jnp.int32)
        return v, SvrgState(since, again, snapshot, full, mean)

    return transformation("svrg_estimator", init, update, needs_params=True, complex_leaves=True)


register(
    svrg_estimator,
    form="primitive",
    paper=PAPER,
    needs=("snapshot_grads", "full_grads"),
    words=2,
    example={"update_interval": 2},
    notes="a link ahead of an optimizer; grad_fn and full_grad_fn may stand for the two gradients",
)
