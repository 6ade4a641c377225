"""ConFIG: the direction whose cosines with the gradients of all tasks are the same.

Equations: in the docstring of `config`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit.aggregation.makers import weights_of_gramian
from gradkit.aggregation.preferences import check_vector, vector_of
from gradkit.aggregation.spectral import solve_kept
from gradkit.catalogue import Paper, register

PAPER = Paper("ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks", "Liu et al.", 2024,
              "2408.11104")  # fmt: skip
# torchjd's bound on the norm of the direction before it is normalised.
SMALLEST = 1e-12


def config_weights(G: jax.Array, p: jax.Array) -> jax.Array:
    """The weight of each gradient in ConFIG's combination, from the Gramian."""
    norms = jnp.sqrt(jnp.diagonal(G))
    inverse = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, jnp.ones_like(norms)), jnp.zeros_like(norms))
    unit = inverse[:, None] * G * inverse[None, :]
    u = solve_kept(unit, p)
    length = jnp.sqrt(jnp.maximum(jnp.dot(u, jnp.dot(unit, u, precision="highest"), precision="highest"), 0))
    w = inverse * u / jnp.maximum(length, SMALLEST)
    return jnp.sum(jnp.dot(G, w, precision="highest")) * w


def config(*, pref_vector: Any = None) -> optax.GradientTransformationExtraArgs:
    """Conflict-free inverse gradients: a direction that makes every task better at the same relative rate.

    With U the matrix of the unit gradients g_i / |g_i| in rows (a zero gradient stays zero) and preferences p:

        d = pinv(U) p,    d <- d / max(|d|, 1e-12)
        result = (<g_1, d> + ... + <g_m, d>) d

    All of it follows from the Gramian: pinv(U) p = U^T pinv(U U^T) p.

    Args:
      pref_vector: p, m finite numbers, the cosines of the direction with the gradients up to a common factor. Default
        1 each.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; put it first in a
      chain. No state. Sharded gradients cost one all-reduce of m^2 numbers. Its length is the sum of the projections
      of all gradients.

    Raises:
      ValueError: at construction, a preference that is not a vector of numbers; when called, a preference of another
        length, leading axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = config()
      >>> g = jnp.array([[3.0, 0.0], [0.0, 1.0]])
      >>> [round(float(x), 3) for x in tx.update(g, tx.init(g[0]))[0]]
      [2.0, 2.0]

    Reference: Liu et al. ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks. 2024,
    arXiv 2408.11104. Equal to torchjd, which takes the pseudo-inverse of U itself.
    """
    check_vector("pref_vector", pref_vector)

    def weigh(G: jax.Array, state: Any, **extra: Any) -> tuple[jax.Array, Any]:
        del extra
        return config_weights(G, vector_of("config", "pref_vector", pref_vector, len(G), G.dtype, 1.0)), state

    return weights_of_gramian("config", weigh)


register(config, form="aggregator", paper=PAPER, collectives="gramian", golden=("estimators/config",))
