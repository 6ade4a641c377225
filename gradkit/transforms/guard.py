"""A guard that skips harmful steps: neither parameters nor state change in a skipped step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import increment, inside, transformation
from gradkit.engine.norms import global_norm, global_sums
from gradkit.types import Scalar

TRIGGERS = ("nonfinite", "spike")


class GuardState(NamedTuple):
    """Number of steps skipped in a row; number of all steps; the last gradient norms and losses, NaN where there are
    none yet (None with on="nonfinite"); the metrics; the state of the inner transformation."""

    in_a_row: jax.Array
    count: jax.Array
    window: Any
    metrics: dict[str, jax.Array]
    inner: Any

    may_be_nan = ("window",)


@jax.jit
def _not_finite(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(x), 0, 1).astype(jnp.float32)


@jax.jit
def _zero_where(skip: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(skip, jnp.zeros_like(x), x)


@jax.jit
def _either(skip: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    return jnp.where(skip, old, new)


def spikes(window: jax.Array, now: jax.Array, sigma: Any) -> jax.Array:
    """Whether a number is more than sigma standard deviations above the mean of the window, whose free places are NaN.

    >>> before = jnp.array([1.0, 3.0, jnp.nan, jnp.nan])  # mean 2, deviation sqrt(2)
    >>> [bool(spikes(before, jnp.float32(x), 2.0)) for x in (4.8, 4.9)]
    [False, True]
    """
    known = jnp.isfinite(window)
    n = known.sum(dtype=jnp.int32).astype(window.dtype)
    mean = jnp.where(known, window, 0).sum() / jnp.maximum(n, 1)
    variance = jnp.square(jnp.where(known, window - mean, 0)).sum() / jnp.maximum(n - 1, 1)
    # Where all numbers are equal, rounding must not count as a spike.
    slack = len(window) * jnp.finfo(window.dtype).eps * jnp.abs(mean)
    enough = n >= max(2, len(window) // 2)
    return enough & (now - mean > jnp.asarray(sigma).astype(window.dtype) * jnp.sqrt(variance) + slack)


def guard(
    inner: optax.GradientTransformation,
    on: str = "nonfinite",
    *,
    max_skips: int = 10,
    sigma: Scalar = 6.0,
    window_size: int = 128,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Skips steps that are not finite, or that are spikes: parameters and state stay exactly as they were.

    A step is harmful with on="nonfinite" if an entry of the gradient, of the inner update, or the loss is not finite.
    With on="spike" it is also harmful if the gradient norm |g| or the loss satisfies

        |g| > mean + sigma std                of the last W gradient norms, and likewise for the loss

    A harmful step has the update 0 and leaves the inner state unchanged. The mean and the (unbiased) standard deviation
    are those of the window before this step, once it holds W / 2 numbers; every finite number enters the window, also
    that of a skipped step, so that a lasting change of level stops being a spike. The guard goes around the whole
    optimizer, learning rate included; a skipped step is skipped in momenta, counters, schedules and averages as well.
    On a mesh all devices take the same decision.

    Args:
      inner: any transformation whose updates are added to the parameters.
      on: which steps are skipped: "nonfinite" (default), or "spike", which skips steps that are not finite as well.
      max_skips: the budget, >= 1: after this many skips in a row a spike is accepted as the new level; a step that is
        not finite is never accepted, and the metric `guard_exhausted` becomes 1: stop the run, or go back to a
        checkpoint. Default 10.
      sigma: standard deviations above the mean, > 0. Default 6 (code of OLMo 2). With "spike".
      window_size: W >= 4, number of steps in the statistics. Default 128 (code of OLMo 2). With "spike".
      axis_name: axis of `vmap` or `shard_map` whose members are replicas: if one has a harmful step, all skip it. Under
        plain jit the gradient is a mean over all devices already. Default None.

    Returns:
      A transformation. In place of a gradient that is not finite the inner one gets zeros, and its result is discarded.
      The loss is the extra argument `value`, where it is given. Metrics: `skipped` (1 or 0, of the last step),
      `skipped_total`, `skipped_in_a_row`, `guard_exhausted`. State: two counters, the inner state, and with "spike" 2 W
      numbers. Collectives: two all-reduces of at most two scalars.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> tx, x = guard(optax.sgd(0.5, momentum=0.9)), jnp.array(1.0)
      >>> state = tx.init(x)
      >>> for g in (1.0, jnp.nan, 1.0):
      ...     u, state = tx.update(jnp.array(g), state, x)
      ...     x = x + u
      >>> print(f"{x:.3f}", state.metrics["skipped_total"])  # 1 - 0.5 - 0.5 (1 + 0.9)
      -0.450 1.0

    Reference: OLMo et al. 2 OLMo 2 Furious. 2025, arXiv 2501.00656, whose code skips steps by the standard deviations
    of loss and gradient norm over a rolling window; Chowdhery et al. PaLM: Scaling Language Modeling with Pathways.
    2022, arXiv 2204.02311 (batches around a spike are skipped by hand). Departures: steps that are not finite are
    skipped too, and do not enter the window; the old state is selected, not multiplied by a factor 0; there is a
    budget. `optax.apply_if_finite` does not check the update, and accepts steps that are not finite once its budget is
    spent.
    """
    checks.axis_name("axis_name", axis_name)
    checks.choice("on", on, TRIGGERS)
    max_skips = checks.integer("max_skips", max_skips, 1)
    checks.real("sigma", sigma, "(0, inf)")
    window_size = checks.integer("window_size", window_size, 4)
    below = inside(inner)
    watches = on == "spike"

    def published(skip: jax.Array, total: jax.Array, row: jax.Array) -> dict[str, jax.Array]:
        numbers = {"skipped": skip, "skipped_total": total, "skipped_in_a_row": row}
        return {k: v.astype(jnp.float32) for k, v in {**numbers, "guard_exhausted": row >= max_skips}.items()}

    def init(params: optax.Params) -> GuardState:
        zero = jnp.zeros((), jnp.int32)
        kept = jnp.full((2, window_size), jnp.nan, jnp.float32) if watches else None
        return GuardState(zero, jnp.zeros((), jnp.int32), kept, published(zero, zero, zero), below.init(params))

    def together(bad: jax.Array) -> jax.Array:
        """Whether it is true for any member of the axis."""
        return bad if axis_name is None else jax.lax.pmax(bad.astype(jnp.int32), axis_name) > 0

    def update(updates: Any, state: GuardState, params: Any = None, **extra: Any) -> tuple[Any, GuardState]:
        loss = extra.get("value")
        (bad_entries,) = global_sums(jax.tree.map(_not_finite, updates))
        broken = bad_entries > 0
        if loss is not None:
            broken |= ~jnp.isfinite(jnp.asarray(loss))
        broken = together(broken)
        spike, kept = jnp.zeros((), bool), state.window
        if watches:
            norm = global_norm(updates).astype(jnp.float32)
            level = jnp.asarray(jnp.nan if loss is None else loss).astype(jnp.float32)
            spike = spikes(kept[0], norm, sigma) | spikes(kept[1], level, sigma)
            # A number that is not finite leaves its place in the window free.
            now = jnp.stack([jnp.where(jnp.isfinite(x), x, jnp.nan) for x in (norm, level)])
            kept = jax.lax.dynamic_update_index_in_dim(kept, now, state.count % window_size, 1)
            spike = together(spike) & (state.in_a_row < max_skips)
        safe = jax.tree.map(lambda g: _zero_where(broken, g), updates)
        moved, after = below.update(safe, state.inner, params, **extra)
        (bad_moves,) = global_sums(jax.tree.map(_not_finite, moved))
        skip = broken | spike | together(bad_moves > 0)
        moved = jax.tree.map(lambda u: _zero_where(skip, u), moved)
        inner_state = jax.tree.map(lambda new, old: _either(skip, old, new), after, state.inner)
        row = jnp.where(skip, increment(state.in_a_row), jnp.zeros_like(state.in_a_row))
        total = state.metrics["skipped_total"] + skip.astype(jnp.float32)
        metrics = published(skip, total, row)
        return moved, GuardState(row, increment(state.count), kept, metrics, inner_state)

    return transformation("guard", init, update, complex_leaves=True)


register(
    guard,
    form="wrapper",
    paper=Paper("2 OLMo 2 Furious", "OLMo et al.", 2025, "2501.00656"),
    collectives="norms",
    notes="around the whole optimizer; what is skipped leaves no trace in the state",
)
