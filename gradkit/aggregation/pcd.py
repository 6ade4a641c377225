"""Priority-constrained descent: the first task is followed, as far as all others still fall.

Equations: in the docstring of `pcd`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.makers import weights_of_gramian
from gradkit.aggregation.preferences import check_count, dtype_of
from gradkit.catalogue import Paper, register
from gradkit.engine.core import bias_correction, increment, scalar
from gradkit.linalg import solve_lcp
from gradkit.types import Scalar

PAPER = Paper(
    "Not All Objectives Are Born Equal: Priority-Constrained Descent for Hierarchical Multi-Objective Optimization",
    "Varam, AlHajri",
    2026,
    "2606.29521",
)


class PcdState(NamedTuple):
    """Number of steps, and the moving averages of the squared norms."""

    count: jax.Array
    v: jax.Array


def priority_weights(N: jax.Array, tau: Any) -> jax.Array:
    """(1, mu): the smallest help that the normalised gradients of the other tasks need; mu = 0 where none helps."""
    if len(N) == 1:
        return jnp.ones((1,), N.dtype)
    eps = float(jnp.finfo(N.dtype).eps)
    others, diagonal = N[1:, 1:], jnp.diagonal(N)[1:]
    size = jnp.max(jnp.diagonal(N))
    q = N[1:, 0] - scalar(tau, N) * diagonal
    ridge = len(N) * eps * jnp.where(size > 0, size, jnp.ones_like(size))
    mu = solve_lcp(others + ridge * jnp.eye(len(q), dtype=N.dtype), q)
    # Where no mu satisfies all constraints, that of the ridge is huge, and what is left of them is not.
    rest = jnp.min(jnp.dot(others, mu, precision="highest") + q)
    feasible = rest >= -(eps**0.5) * size
    return jnp.concatenate([jnp.ones((1,), N.dtype), jnp.where(feasible, mu, jnp.zeros_like(mu))])


def pcd(
    *, num_tasks: int, tau: Scalar = 0.02, beta: Scalar = 0.999, eps: Scalar = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """Priority-constrained descent: a primary task, and others that must not be harmed.

    With G the Gramian of the gradients, the primary one first:

        v <- beta v + (1 - beta) diag(G),   s = 1 / sqrt(v / (1 - beta^t) + eps),   N_ij = s_i G_ij s_j
        mu >= 0 with  N_i0 + sum_j N_ij mu_j >= tau N_ii,  and equality where mu_i > 0       for the other tasks i;
              mu = 0 where there is none
        w = (1, mu) s, scaled so that the result has the norm of g_0;    0 where that is 0
        result = w_0 g_0 + ... + w_(m - 1) g_(m - 1)

    Args:
      num_tasks: m, the number of tasks, >= 1: the state has a number for each.
      tau: the least relative gain of the other tasks, >= 0. Default 0.02.
      beta: decay of the averages of the squared norms, in [0, 1). Default 0.999.
      eps: added to the averages, > 0. Default 1e-8.

    Returns:
      A transformation whose updates come in with a leading axis of length m, the primary task first, and leave without
      it; put it first in a chain. State: m numbers and a counter. Sharded gradients cost one all-reduce of m^2 numbers.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, another number of gradients, leading
        axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = pcd(num_tasks=2, tau=0.0, eps=1e-12)
      >>> g = jnp.array([[1.0, 1.0], [-1.0, 0.0]])
      >>> [abs(round(float(x), 3)) for x in tx.update(g, tx.init(g[0]))[0]]  # of the norm of the first
      [0.0, 1.414]

    Reference: Not All Objectives Are Born Equal: Priority-Constrained Descent. 2026, arXiv 2606.29521. The program is
    solved as a linear complementarity problem, and whether it can be is read off its constraints.
    """
    num_tasks = checks.integer("num_tasks", num_tasks, 1)
    checks.real("tau", tau, "[0, inf)")
    checks.real("beta", beta, "[0, 1)")
    checks.real("eps", eps, "(0, inf)")

    def init(params: Any) -> PcdState:
        return PcdState(jnp.zeros((), jnp.int32), jnp.zeros((num_tasks,), dtype_of(params)))

    def weigh(G: jax.Array, state: PcdState, **extra: Any) -> tuple[jax.Array, PcdState]:
        del extra
        check_count("pcd", num_tasks, len(G))
        count, b = increment(state.count), scalar(beta, G)
        v = b * state.v.astype(G.dtype) + (1 - b) * jnp.diagonal(G)
        s = 1 / jnp.sqrt(v / bias_correction(beta, count, G) + scalar(eps, G))
        w = priority_weights(s[:, None] * G * s[None, :], tau) * s
        norm = jnp.sqrt(jnp.maximum(jnp.dot(w, jnp.dot(G, w, precision="highest"), precision="highest"), 0))
        primary = jnp.sqrt(G[0, 0])
        w = w * jnp.where(norm > 0, primary / jnp.where(norm > 0, norm, jnp.ones_like(norm)), jnp.zeros_like(norm))
        return w, PcdState(count, v.astype(state.v.dtype))

    return weights_of_gramian("pcd", weigh, init=init)


register(
    pcd,
    form="aggregator",
    paper=PAPER,
    collectives="gramian",
    golden=("estimators/pcd",),
    example={"num_tasks": 3},
    notes="the first task is the primary one",
)
