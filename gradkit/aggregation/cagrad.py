"""CAGrad: near the mean gradient, the direction that is best for the task that gains least.

Equations: in the docstring of `cagrad`. The weights solve a convex problem on the simplex,

    minimise  <G e, w> + phi sqrt(w^T G w)      with e_i = 1 / m

whose minimum is, for the right kappa, the shortest vector sum_i w_i (g_i + kappa g_0), a linear complementarity
problem. kappa is found by bisection: phi kappa = sqrt(w^T G w) at the minimum.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.aggregation.makers import weights_of_gramian
from gradkit.catalogue import Paper, register
from gradkit.linalg import solve_lcp
from gradkit.types import Scalar

PAPER = Paper("Conflict-Averse Gradient Descent for Multi-task Learning", "Liu et al.", 2021, "2110.14048")
# Added to the diagonal of a Gramian of unit vectors, in units of m eps of its dtype.
RIDGE = 8.0
# The least tau = |sum w_i g_i| that the bisection looks at, for gradients whose squared norms add up to 1.
LEAST_TAU = 1e-12


def shortest_shifted(G: jax.Array, kappa: jax.Array) -> jax.Array:
    """The w of the simplex that minimises |sum_i w_i (g_i + kappa g_0)|, for the Gramian G of trace 1.

    Up to a factor it solves the linear complementarity problem of the shifted Gramian H and -1.
    """
    m = len(G)
    of_mean = jnp.mean(G, axis=1)
    H = G + kappa * (of_mean[:, None] + of_mean[None, :]) + jnp.square(kappa) * jnp.mean(G)
    eps = float(jnp.finfo(G.dtype).eps)
    size = jnp.max(jnp.abs(jnp.diagonal(H)))
    # In units of each shifted gradient, so that the rounding of long ones does not hide short ones.
    norms = jnp.sqrt(jnp.maximum(jnp.diagonal(H), eps * eps * jnp.where(size > 0, size, jnp.ones_like(size))))
    H = H / norms[:, None] / norms[None, :]
    # Gradients that are linearly dependent have many minima; any of them is as good.
    u = solve_lcp(H + RIDGE * m * eps * jnp.eye(m, dtype=G.dtype), -jnp.min(norms) / norms)
    w, finite = u / norms, jnp.isfinite(u).all()
    total = jnp.sum(w)
    # Where rounding keeps the solver from an answer, all gradients alike.
    solved = w / jnp.where(total > 0, total, jnp.ones_like(total))
    return jnp.where(finite & (total > 0), solved, jnp.where(finite, 1 / m, jnp.nan))


def _norm(G: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.maximum(jnp.dot(w, jnp.dot(G, w, precision="highest"), precision="highest"), 0))


def cagrad_weights(G: jax.Array, c: Any, norm_eps: Any) -> jax.Array:
    """The weight of each gradient in CAGrad's combination, from the Gramian alone."""
    m, dtype = len(G), G.dtype
    eps = float(jnp.finfo(dtype).eps)
    trace, least = jnp.trace(G), jnp.asarray(norm_eps, dtype)
    vanishes = (trace < least) | (trace == 0)
    G = jnp.where(vanishes, jnp.zeros_like(G), G / jnp.where(vanishes, jnp.ones_like(trace), trace))
    e = jnp.full((m,), 1 / m, dtype)
    phi = jnp.asarray(c, dtype) * _norm(G, e)
    safe = jnp.where(phi > 0, phi, jnp.ones_like(phi))

    def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """In logarithms, as tau may be of any size."""
        low, high = ends
        middle = (low + high) / 2
        tau = jnp.exp(middle)
        longer = _norm(G, shortest_shifted(G, tau / safe)) > tau
        return jnp.where(longer, middle, low), jnp.where(longer, high, middle)

    width = -math.log(LEAST_TAU)
    ends = (jnp.asarray(-width, dtype), jnp.zeros((), dtype))
    low, high = jax.lax.fori_loop(0, int(np.ceil(np.log2(width / eps))), halve, ends)
    w = shortest_shifted(G, jnp.exp((low + high) / 2) / safe)
    g = _norm(G, w)
    # With the ridge, and in the rounding of a Gramian, a sum that cancels is as large as the root of eps of its terms.
    rounding = 2 * jnp.sqrt(RIDGE * m * jnp.asarray(eps, dtype)) * _norm(jnp.abs(G), w)
    stationary = (g < least) | (g <= rounding)
    toward = phi / jnp.where(stationary, jnp.ones_like(g), g) * w
    return jnp.where(vanishes | (stationary & (phi > 0)), jnp.zeros_like(e), e + toward)


def cagrad(*, c: Scalar = 0.5, norm_eps: Scalar = 0.0) -> optax.GradientTransformationExtraArgs:
    """Conflict-averse gradient descent: the mean gradient, moved towards the task that gains least.

    With the mean gradient g_0 and g_w = w_1 g_1 + ... + w_m g_m, w of the simplex:

        w = argmin  <g_w, g_0> + c |g_0| |g_w|
        result = g_0 + c |g_0| g_w / |g_w|         0 where |g_w| vanishes, as at Pareto stationary points for c > 1

    It is the d with |d - g_0| <= c |g_0| whose least inner product with a gradient is largest.

    Args:
      c: how far from the mean, >= 0; 0 is the mean. Default 0.5. Below 1 the method converges to a minimum of the mean
        loss (paper); large ones come near `gk.aggregation.mgda`.
      norm_eps: the result is 0 where the sum of all squared gradient norms, or |g_w| relative to its root, is below
        this, >= 0. Default 0. The 1e-4 of torchjd gives 0 for all small gradients, as late in training, and stops it.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; put it first in a
      chain, `optax.chain(cagrad(), gk.adam(1e-3))`. No state. Sharded gradients cost one all-reduce of m^2 numbers.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, leading axes that differ or are
        missing, gradients that do not match the parameters.

    Example:
      >>> tx = cagrad(c=1.0)
      >>> g = jnp.array([[3.0, 0.0], [0.0, 1.0]])  # the mean is (1.5, 0.5), of norm 1.58
      >>> [round(float(x), 2) for x in tx.update(g, tx.init(g[0]))[0]]
      [1.5, 2.08]

    Reference: Liu et al. Conflict-Averse Gradient Descent for Multi-task Learning. 2021, arXiv 2110.14048. The weights
    are exact, and reach a lower value than the general solvers of the authors' code and of torchjd, whose results are
    good to about 3e-4. The authors' code may divide the result by 1 + c^2 as well; the paper does not.
    """
    checks.real("c", c, "[0, inf)")
    checks.real("norm_eps", norm_eps, "[0, inf)")

    def weigh(G: jax.Array, state: Any, **extra: Any) -> tuple[jax.Array, Any]:
        del extra
        return cagrad_weights(G, c, norm_eps), state

    return weights_of_gramian("cagrad", weigh)


register(cagrad, form="aggregator", paper=PAPER, collectives="gramian", golden=("estimators/cagrad",))
