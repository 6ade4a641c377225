"""Nash-MTL: the update that the tasks agree on in Nash's bargaining game.

Equations: in the docstring of `nash_mtl`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.fairgrad import fair_weights
from gradkit.aggregation.makers import weights_of_gramian
from gradkit.catalogue import Paper, register
from gradkit.types import Scalar

PAPER = Paper("Multi-Task Learning as a Bargaining Game", "Navon et al.", 2022, "2202.01017")


def nash_mtl(*, max_norm: Scalar = 1.0, max_iters: int = 100) -> optax.GradientTransformationExtraArgs:
    """Multi-task learning as a bargaining game: the update with the largest product of the gains of all tasks.

    With G the Gramian of the gradients:

        w > 0 with  G w = 1 / w  (entry by entry)
        w <- w min(1, max_norm / |w_1 g_1 + ... + w_m g_m|)
        result = w_1 g_1 + ... + w_m g_m

    The result does not change where the gradient of one task is multiplied by a positive number. A task whose gradient
    is zero is left out.

    Args:
      max_norm: largest norm of the result, > 0. Default 1 (paper). Without it the norm is sqrt(m) in every step.
      max_iters: bound on the Newton steps, >= 1. Default 100; it takes about ten.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; put it first in a
      chain. No state. Sharded gradients cost one all-reduce of m^2 numbers.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, leading axes that differ or are
        missing, gradients that do not match the parameters.

    Example:
      >>> tx = nash_mtl(max_norm=10.0)
      >>> g = jnp.array([[2.0, 0.0], [0.0, 5.0]])
      >>> [round(float(x), 3) for x in tx.update(g, tx.init(g[0]))[0]]
      [1.0, 1.0]

    Reference: Navon et al. Multi-Task Learning as a Bargaining Game. 2022, arXiv 2202.01017. Solved exactly, as
    `gk.aggregation.fairgrad` with alpha = 1. The authors' code and torchjd take 20 steps of a convex-concave procedure
    from weights of 1, which do not reach the bargaining point. Weights are computed anew in every step, and not
    reused for several.
    """
    checks.real("max_norm", max_norm, "(0, inf)")
    max_iters = checks.integer("max_iters", max_iters, 1)

    def weigh(G: jax.Array, state: Any, **extra: Any) -> tuple[jax.Array, Any]:
        del extra
        w = fair_weights(G, 1.0, max_iters)
        norm = jnp.sqrt(jnp.maximum(jnp.dot(w, jnp.dot(G, w, precision="highest"), precision="highest"), 0))
        limit = jnp.asarray(max_norm, G.dtype)
        return w * jnp.where(norm > limit, limit / jnp.where(norm > 0, norm, jnp.ones_like(norm)), 1), state

    return weights_of_gramian("nash_mtl", weigh)


register(nash_mtl, form="aggregator", paper=PAPER, collectives="gramian")
