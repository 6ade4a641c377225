"""Grokfast: the slow part of the gradient, amplified.

mu_1 = g_1,   mu_t = alpha mu_{t-1} + (1 - alpha) g_t
g_t <- g_t + lamb mu_t
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.transforms.core import increment, scalar, settle, transformation, zeros


class GrokfastEmaState(NamedTuple):
    """Number of updates made, and the running mean of the gradient."""

    count: jax.Array
    mu: Any


def grokfast_ema(alpha: Any = 0.98, *, lamb: Any = 2.0, mu_dtype: Any = None) -> optax.GradientTransformationExtraArgs:
    """Adds a multiple of the running mean of gradients, ahead of any optimizer.

    `optax.chain(gk.grokfast_ema(), gk.adamw(1e-3))`. Under data parallelism it belongs behind the mean over devices.
    A constant gradient comes out 1 + lamb times as long, so the learning rate is commonly divided by that.

    Args:
      alpha: decay of the mean, in [0, 1]. Default 0.98 (paper).
      lamb: weight of the mean, >= 0. Default 2 (paper). 0 changes nothing.
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
    checks.real("alpha", alpha, "[0, 1]")
    checks.real("lamb", lamb, "[0, inf)")

    def init(params: optax.Params) -> GrokfastEmaState:
        return GrokfastEmaState(jnp.zeros((), jnp.int32), zeros(params, mu_dtype))

    def update(updates: Any, state: GrokfastEmaState, params: Any = None, **extra: Any) -> tuple[Any, GrokfastEmaState]:
        del params, extra

        def mean(m: jax.Array, g: jax.Array) -> jax.Array:
            a = scalar(alpha, g)
            return jnp.where(state.count == 0, g, a * m.astype(g.dtype) + (1 - a) * g).astype(m.dtype)

        mu = settle(jax.tree.map(mean, state.mu, updates))
        updates = jax.tree.map(lambda g, m: g + scalar(lamb, g) * m.astype(g.dtype), updates, mu)
        return updates, GrokfastEmaState(increment(state.count), mu)

    return transformation("grokfast_ema", init, update, complex_leaves=True)


register(
    grokfast_ema,
    form="primitive",
    paper=Paper("Grokfast: Accelerated Grokking by Amplifying Slow Gradients", "Lee et al.", 2024, "2405.20233"),
    words=1,
    golden=("adaptive/grokfast_ema",),
)
