"""Grokfast: the slow component of the gradient, amplified."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import increment, rows_of, scalar, transformation, zeros
from gradkit.types import DTypeLike, Scalar


class GrokfastEmaState(NamedTuple):
    """Number of updates made, and the running mean of the gradient."""

    count: jax.Array
    mu: Any


def grokfast_ema(
    alpha: Scalar = 0.98, *, lamb: Scalar = 2.0, mu_dtype: DTypeLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """Adds a multiple of the running mean of gradients to the gradient, in front of any optimizer.

    Equations:

        mu_t = alpha mu_{t-1} + (1 - alpha) g_t,   mu_1 = g_1
        g_t <- g_t + lamb mu_t

    `optax.chain(gk.grokfast_ema(), gk.adamw(1e-3))`. Under data parallelism it belongs behind the mean over devices. A
    constant gradient becomes 1 + lamb times as long, so the learning rate is commonly divided by that.

    Args:
      alpha: decay of the mean, in [0, 1]. Default 0.98 (official code).
      lamb: weight of the mean, >= 0. Default 2 (official code). 0 has no effect.
      mu_dtype: dtype in which the mean is kept. Default float32.

    Returns:
      A transformation. State: 1 word per parameter and a counter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = grokfast_ema()
      >>> g = jnp.array([1.0, -2.0])
      >>> tx.update(g, tx.init(g))[0].tolist()  # the mean starts at the first gradient
      [3.0, -6.0]

    Reference: Lee et al. Grokfast: Accelerated Grokking by Amplifying Slow Gradients. 2024, arXiv 2405.20233.
    Against a tuned learning rate and weight decay the gain the paper reports may not be there: tune both.
    """
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("alpha", alpha, "[0, 1]")
    checks.real("lamb", lamb, "[0, inf)")

    def init(params: optax.Params) -> GrokfastEmaState:
        return GrokfastEmaState(jnp.zeros((), jnp.int32), zeros(params, mu_dtype))

    def update(updates: Any, state: GrokfastEmaState, params: Any = None, **extra: Any) -> tuple[Any, GrokfastEmaState]:
        del params, extra

        def mean(m: jax.Array, g: jax.Array) -> jax.Array:
            return jnp.where(state.count == 0, g.astype(m.dtype), ema(m, g, alpha))

        mu = jax.tree.map(mean, state.mu, updates)
        updates = jax.tree.map(lambda g, m: g + scalar(lamb, g) * m.astype(g.dtype), updates, mu)
        return updates, GrokfastEmaState(increment(state.count), mu)

    return transformation("grokfast_ema", init, update, complex_leaves=True)


class GrokfastMaState(NamedTuple):
    """Number of updates made, and the last gradients along a leading axis, that of step t at index t mod
    window_size."""

    count: jax.Array
    window: Any


def grokfast_ma(
    window_size: int = 100,
    *,
    lamb: Scalar = 5.0,
    filter_type: str = "mean",
    warmup: bool = True,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adds a multiple of the mean of the last gradients to the gradient, in front of any optimizer.

    Equations:

        mu_t = the mean, or the sum, of g_{t-window_size+1}, ..., g_t
        g_t <- g_t + lamb mu_t                           with `warmup` only for t >= window_size

    The state has all of these gradients: 100 words per parameter with the default window, where `grokfast_ema` has one.

    Args:
      window_size: number of gradients in the window, >= 1. Default 100 (official code).
      lamb: weight of the mean, >= 0. Default 5 (official code). 0 has no effect.
      filter_type: "mean" or "sum" of the gradients in the window. Default "mean" (official code).
      warmup: whether gradients pass unchanged until the window is full. Default True (official code); without it the
        mean is over the gradients so far.
      mu_dtype: dtype of the gradients in the state; bfloat16 halves the memory. Default float32.

    Returns:
      A transformation. State: `window_size` words per parameter and a counter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = grokfast_ma(2, lamb=1.0)
      >>> g = jnp.array(1.0)
      >>> first, state = tx.update(g, tx.init(g))
      >>> float(first), float(tx.update(3 * g, state)[0])  # 1, then 3 + (1 + 3) / 2
      (1.0, 5.0)

    Reference: Lee et al. Grokfast: Accelerated Grokking by Amplifying Slow Gradients. 2024, arXiv 2405.20233. The
    official code has another switch, which ends the amplification: here, leave the link out.
    """
    checks.switch(warmup=warmup)
    checks.floating_dtype(mu_dtype=mu_dtype)
    window_size = checks.integer("window_size", window_size, 1)
    checks.real("lamb", lamb, "[0, inf)")
    checks.choice("filter_type", filter_type, ("mean", "sum"))

    def init(params: optax.Params) -> GrokfastMaState:
        window = jax.tree.map(lambda x: rows_of(x, window_size), zeros(params, mu_dtype))
        return GrokfastMaState(jnp.zeros((), jnp.int32), window)

    def update(updates: Any, state: GrokfastMaState, params: Any = None, **extra: Any) -> tuple[Any, GrokfastMaState]:
        del params, extra
        count, slot = increment(state.count), state.count % window_size
        window = jax.tree.map(lambda w, g: w.at[slot].set(g.astype(w.dtype)), state.window, updates)

        def amplify(g: jax.Array, w: jax.Array) -> jax.Array:
            slow = jnp.sum(w.astype(g.dtype), axis=0)
            if filter_type == "mean":
                slow = slow / jnp.minimum(count, window_size).astype(g.dtype)
            if warmup:
                slow = jnp.where(count >= window_size, slow, jnp.zeros_like(slow))
            return g + scalar(lamb, g) * slow

        return jax.tree.map(amplify, updates, window), GrokfastMaState(count, window)

    return transformation("grokfast_ma", init, update, complex_leaves=True)


PAPER = Paper("Grokfast: Accelerated Grokking by Amplifying Slow Gradients", "Lee et al.", 2024, "2405.20233")
register(grokfast_ema, form="primitive", paper=PAPER, words=1, golden=("adaptive/grokfast_ema",))
register(
    grokfast_ma,
    form="primitive",
    paper=PAPER,
    words=100,
    golden=("adaptive/grokfast_ma",),
    example={"warmup": False},
    notes="keeps window_size gradients, by default 100",
)
