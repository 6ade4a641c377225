"""Statistics of a model, such as the running moments of BatchNorm, at the parameters that are evaluated.

A method may evaluate elsewhere than it takes gradients: at an average, or at the point of a schedule-free method. The
statistics that the steps left behind are then of other parameters. Anew, over batches at the evaluation parameters:

    r' = m r + (1 - m) s        what a layer makes of running moments r from a batch whose moments are s
    1 - m = 1 - (r'(r = R) - r'(r = 0)) / R        for any R, measured on the first batch
    result: the mean of s = r'(r = 0) / (1 - m) over the batches

An entry of the model's state that does not follow this rule (a counter, a random key, a constant, a vector of a power
iteration) stays as the steps left it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit.engine.core import wide_dtype

Apply = Callable[[Any, Any], Any]


def _moving(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _with(state: Any, function: Callable[[jax.Array], jax.Array]) -> Any:
    """The state with another value in every entry that may be a running moment."""
    return jax.tree.map(lambda x: function(x) if _moving(x) else x, state)


def has_statistics(state: Any) -> bool:
    """Whether a model's state has an entry that may be a running moment.

    >>> has_statistics({"count": jnp.zeros((), jnp.int32)}), has_statistics({"mean": jnp.zeros(3)})
    (False, True)
    """
    return any(map(_moving, jax.tree.leaves(state)))


def from_zero(apply: Apply, state: Any, batch: Any) -> list[jax.Array]:
    """(1 - m) s of one batch, for every leaf of the state; float32 or wider."""
    made = apply(_with(state, jnp.zeros_like), batch)
    return [x.astype(wide_dtype(x.dtype)) if _moving(x) else jnp.zeros(()) for x in jax.tree.leaves(made)]


def fractions(apply: Apply, state: Any, batch: Any) -> list[jax.Array]:
    """1 - m of every leaf, and 0 where the leaf is no running moment."""
    base = from_zero(apply, state, batch)
    # Of the size of what it is compared with, so that little is lost in the difference.
    R = [1 + jnp.abs(jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x))) for x in base]
    structure = jax.tree.structure(state)
    leaves = [r.astype(x.dtype) if _moving(x) else x for r, x in zip(R, jax.tree.leaves(state), strict=True)]
    probe = jax.tree.leaves(apply(structure.unflatten(leaves), batch))

    def fraction(x: jax.Array, b: jax.Array, r: jax.Array) -> jax.Array:
        if not _moving(x) or not x.size:
            return jnp.zeros(())
        f = 1 - (x.astype(b.dtype) - b) / r
        # One momentum for all entries, to the roundings of the difference in the dtype of the leaf.
        same = jnp.max(jnp.abs(f - jnp.mean(f))) <= 64 * jnp.finfo(x.dtype).eps
        return jnp.where(same & (jnp.mean(f) > 1e-6), jnp.mean(f), jnp.zeros_like(jnp.mean(f)))

    return [fraction(x, b, r) for x, b, r in zip(probe, base, R, strict=True)]


def finished(total: list[jax.Array], count: Any, fraction: list[jax.Array], state: Any) -> Any:
    """The state with the mean of the batches' moments, from the sums over batches."""

    def leaf(x: Any, t: jax.Array, f: jax.Array) -> Any:
        if not _moving(x):
            return x
        known = f > 0
        mean = t / (count * jnp.where(known, f, jnp.ones_like(f)).astype(t.dtype))
        return jnp.where(known, mean.astype(x.dtype), x)

    leaves, structure = jax.tree.flatten(state)
    return structure.unflatten([leaf(x, t, f) for x, t, f in zip(leaves, total, fraction, strict=True)])


def statistics_at(apply: Apply, state: Any, batches: Iterable[Any]) -> Any:
    """The state of a model whose running moments are the mean moments over batches.

    Args:
      apply: (model state, batch) -> new model state, in training mode, at the parameters that are evaluated. What it
        computes must not depend on the running moments, as it does not in training.
      state: the model's state, as the steps left it.
      batches: of the size that is used in training, at least one; once through.

    Returns:
      A state like `state`; entries that are no running moments are those of `state`.

    Raises:
      ValueError: no batches.

    Example:
      >>> layer = lambda state, x: {"mean": 0.9 * state["mean"] + 0.1 * x.mean(), "n": state["n"] + 1}
      >>> state = {"mean": jnp.array(7.0), "n": jnp.array(5)}
      >>> found = statistics_at(layer, state, [jnp.array([1.0, 3.0]), jnp.array([6.0, 6.0])])
      >>> round(float(found["mean"]), 5), int(found["n"])
      (4.0, 5)

    Reference: as `gk.layers.recompute_batch_stats`, which is for the statistics alone.
    """
    compiled = jax.jit(apply)
    total: list[jax.Array] | None = None
    fraction: list[jax.Array] = []
    count = 0
    for batch in batches:
        if total is None:
            fraction = fractions(compiled, state, batch)
        made = from_zero(compiled, state, batch)
        total = made if total is None else [t + x for t, x in zip(total, made, strict=True)]
        count += 1
    if total is None:
        raise ValueError("batches must hold one batch or more, got none: give some that are of the training data")
    return finished(total, count, fraction, state)


def statistics_over(apply: Apply, state: Any, draw: Callable[[jax.Array], Any], count: int) -> Any:
    """`statistics_at` over `count` batches that `draw` makes of the numbers 0, 1, ...: in a program, as one loop."""
    zero = jnp.zeros((), jnp.int32)
    start = [jnp.zeros_like(x) for x in jax.eval_shape(lambda: from_zero(apply, state, draw(zero)))]

    def add(total: list[jax.Array], i: jax.Array) -> tuple[list[jax.Array], None]:
        return [t + x for t, x in zip(total, from_zero(apply, state, draw(i)), strict=True)], None

    total, _ = jax.lax.scan(add, start, jnp.arange(count, dtype=jnp.int32))
    return finished(total, count, fractions(apply, state, draw(zero)), state)
