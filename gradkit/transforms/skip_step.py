"""SkipStep: a step whose loss or gradient norm is a spike among the last ones is not made.

z(v, H) = not (v - mean(H) <= threshold std(H)),   H the last `window_size` finite numbers before, std with N - 1
skip_t  = (t >= max(2, window_size // 2) and (z(loss) or z(|g|)))  or  |g| >= max_norm  or  loss or g is not finite
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import increment, inside, need, real_dtype, scalar, transformation, wide_dtype
from gradkit.engine.norms import global_norm
from gradkit.types import Scalar

NAME = "skip_step"
WATCHED = ("value", "norm")


class SkipStepState(NamedTuple):
    """Number of steps seen; the last finite losses and norms, and how many there were, up to twice the length of the
    window; the metrics; the state of the inner transformation."""

    count: jax.Array
    window: jax.Array
    seen: jax.Array
    metrics: dict[str, jax.Array]
    inner: Any

    exact_fields = ("window",)  # read as a small difference


@jax.jit
def _limit(window: jax.Array, seen: jax.Array, threshold: Any) -> jax.Array:
    """The largest number that is no spike; infinity where there is none before it."""
    known = jnp.arange(len(window), dtype=jnp.int32) < seen
    n = known.sum(dtype=jnp.int32).astype(window.dtype)
    mean = jnp.where(known, window, 0).sum() / jnp.maximum(n, 1)
    variance = jnp.square(jnp.where(known, window - mean, 0)).sum() / jnp.maximum(n - 1, 1)
    # Rounding of the mean alone must not make a spike where all numbers are the same.
    slack = len(window) * jnp.finfo(window.dtype).eps * jnp.abs(mean)
    return jnp.where(n > 0, mean + scalar(threshold, window) * jnp.sqrt(variance) + slack, jnp.inf)


@jax.jit
def _zero_where(skip: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(skip, jnp.zeros_like(x), x)


@jax.jit
def _either(skip: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    return jnp.where(skip, old, new)


def skip_step(
    inner: optax.GradientTransformation,
    *,
    window_size: int = 128,
    threshold: Scalar = 6.0,
    watch: Sequence[str] = WATCHED,
    max_norm: Scalar | None = None,
    non_finite: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Skips steps at spikes of the loss or of the gradient norm: parameters and inner state stay exactly as they were.

    Equations, with the histories H of the last `window_size` finite losses and norms before this step, those of skipped
    steps included, and their standard deviations with N - 1 (0 of fewer than two):

        z(v, H) = not (v - mean(H) <= threshold std(H))
        skip_t  = (t >= max(2, window_size // 2) and (z(loss) or z(|g|)))  or  |g| >= max_norm
                  or (non_finite and (the loss or an entry of g is not finite))
        skipped: update 0, the inner state as before (its counters too);  otherwise: update and state of inner

    A new level of the loss is accepted after at most `window_size` steps, since spikes enter the history. It goes
    around the complete optimizer. `guard` skips alike, also looks at the update, and has a budget of skips in a row.

    Args:
      inner: any transformation whose updates are added to the parameters.
      window_size: length of the histories, >= 2. Default 128 (code of OLMo-core, `rolling_interval_length`).
      threshold: standard deviations above the mean, > 0. Default 6 (code of OLMo-core).
      watch: what may be a spike: "value" (the loss), "norm" (of the gradient). Default both.
      max_norm: global gradient norm from which a step is skipped in any case, > 0. Default None.
      non_finite: whether a loss or a gradient that is not finite is skipped at once. Default True.

    Returns:
      A transformation whose `update` needs `value`, the loss averaged over replicas, unless `watch` leaves it out.
      State: the inner one, 2 window_size numbers and counters. Metrics: `skipped` (1 or 0), `skipped_total`,
      `value_limit`, `norm_limit`. Collectives: one scalar.

    Raises:
      ValueError: an argument outside its range; an `update` without `value` while it is watched.

    Example:
      >>> tx, x = skip_step(optax.sgd(0.5), window_size=4), jnp.array(1.0)
      >>> state = tx.init(x)
      >>> for loss in (1.0, 1.1, 0.9, 50.0):
      ...     u, state = tx.update(x, state, x, value=jnp.array(loss))
      >>> float(u), float(state.metrics["skipped"])
      (0.0, 1.0)

    Reference: the SkipStepOptimizer of the code of OLMo et al. 2 OLMo 2 Furious. 2025, arXiv 2501.00656. Only finite
    numbers enter a history: copies that let a NaN in skip every one of the next `window_size` steps.
    """
    checks.texts(watch=watch)
    window_size = checks.integer("window_size", window_size, 2)
    checks.real("threshold", threshold, "(0, inf)")
    checks.real("max_norm", max_norm, "(0, inf)", optional=True)
    checks.switch(non_finite=non_finite)
    watched = (watch,) if isinstance(watch, str) else tuple(watch)
    if not watched or not set(watched) <= set(WATCHED):
        raise ValueError(f"watch must have one or both of {WATCHED}, got {watch!r}; write watch=('value', 'norm')")
    below = inside(inner)

    def published(skip: jax.Array, total: jax.Array, limits: jax.Array) -> dict[str, jax.Array]:
        # Before there is a history nothing is limited; the largest number stands for it, as metrics are finite.
        most = jnp.minimum(limits.astype(jnp.float32), jnp.finfo(jnp.float32).max)
        numbers = {"skipped": skip.astype(jnp.float32), "skipped_total": total}
        return {**numbers, "value_limit": most[0], "norm_limit": most[1]}

    def init(params: optax.Params) -> SkipStepState:
        zero = jnp.zeros((), jnp.float32)
        metrics = published(zero, jnp.zeros((), jnp.float32), jnp.full((2,), jnp.inf, jnp.float32))
        dtypes = [real_dtype(wide_dtype(x.dtype)) for x in jax.tree.leaves(params)]
        dtype = max(dtypes, key=lambda d: d.itemsize, default=jnp.dtype(jnp.float32))
        window, seen = jnp.zeros((2, window_size), dtype), jnp.zeros((2,), jnp.int32)
        return SkipStepState(jnp.zeros((), jnp.int32), window, seen, metrics, below.init(params))

    def update(updates: Any, state: SkipStepState, params: Any = None, **extra: Any) -> tuple[Any, SkipStepState]:
        dtype = state.window.dtype
        norm = global_norm(updates).astype(dtype)
        given = need(NAME, extra, "value") if "value" in watched else extra.get("value")
        # One that is not given is of no consequence.
        loss = jnp.zeros((), dtype) if given is None else jnp.asarray(given).astype(dtype)
        now = jnp.stack([loss, norm])
        finite = jnp.isfinite(now)
        limits = jnp.stack([_limit(state.window[i], state.seen[i], threshold) for i in range(2)])
        count = increment(state.count)
        spike = jnp.stack([~(now[i] <= limits[i]) for i, name in enumerate(WATCHED) if name in watched]).any()
        skip = spike & (count >= max(2, window_size // 2))
        if max_norm is not None:
            skip |= norm >= scalar(max_norm, norm)
        broken = ~finite.all()
        if non_finite:
            skip |= broken
        safe = jax.tree.map(lambda g: _zero_where(skip, g), updates)
        moved, after = below.update(safe, state.inner, params, **extra)
        moved = jax.tree.map(lambda u: _zero_where(skip, u), moved)
        kept = jax.tree.map(lambda new, old: _either(skip, old, new), after, state.inner)

        places = jnp.arange(window_size, dtype=jnp.int32)[None] == (state.seen % window_size)[:, None]
        window = jnp.where(places & finite[:, None], now[:, None], state.window)
        seen = jnp.where(finite, state.seen + 1, state.seen)
        # The counter stays a place in the ring.
        seen = jnp.where(seen >= 2 * window_size, seen - window_size, seen)
        total = state.metrics["skipped_total"] + skip.astype(jnp.float32)
        return moved, SkipStepState(count, window, seen, published(skip, total, limits), kept)

    return transformation(NAME, init, update, complex_leaves=True)


register(
    skip_step,
    form="wrapper",
    paper=Paper("2 OLMo 2 Furious", "OLMo et al.", 2025, "2501.00656"),
    needs=("value",),
    collectives="norms",
    golden=("modern/skip_step",),
    notes="around the complete optimizer; a skipped step leaves the inner state as it was",
)
