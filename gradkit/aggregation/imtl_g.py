"""IMTL-G: the combination that has the same projection on the gradients of all tasks.

Equations: in the docstring of `imtl_g`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit.aggregation.makers import weights_of_gramian
from gradkit.aggregation.spectral import solve_kept
from gradkit.catalogue import Paper, register

PAPER = Paper("Towards Impartial Multi-task Learning", "Liu et al.", 2021)
# torchjd's bound on the sum of the weights before they are normalised.
SMALLEST = 1e-12


def imtl_g() -> optax.GradientTransformationExtraArgs:
    """Impartial multi-task learning by gradients: equal projections on the unit gradients of all tasks.

    With G the Gramian of the gradients and d_i = |g_i|:

        v = pinv(G) d,   s = v_1 + ... + v_m,   w = v / s, or 0 where |s| < 1e-12
        result = w_1 g_1 + ... + w_m g_m

    Weights add up to 1, and some may be negative: where gradients conflict much, the common projection may be negative
    as well, and every task gets worse.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; put it first in a
      chain. No state. Sharded gradients cost one all-reduce of m^2 numbers.

    Raises:
      ValueError: leading axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = imtl_g()
      >>> g = jnp.array([[3.0, 0.0], [0.0, 1.0]])
      >>> print(tx.update(g, tx.init(g[0]))[0])
      [0.75 0.75]

    Reference: Liu et al. Towards Impartial Multi-task Learning. 2021 (ICLR; no arXiv id). The paper solves for
    all but one weight; this is the symmetric form of torchjd, which also exists for gradients that are linearly
    dependent. The authors' scaling of losses is `gk.aggregation.imtl_l`.
    """

    def weigh(G: jax.Array, state: Any, **extra: Any) -> tuple[jax.Array, Any]:
        del extra
        v = solve_kept(G, jnp.sqrt(jnp.diagonal(G)))
        s = jnp.sum(v)
        vanishes = jnp.abs(s) < SMALLEST
        return jnp.where(vanishes, jnp.zeros_like(v), v / jnp.where(vanishes, jnp.ones_like(s), s)), state

    return weights_of_gramian("imtl_g", weigh)


register(imtl_g, form="aggregator", paper=PAPER, collectives="gramian", golden=("estimators/imtl_g",))
