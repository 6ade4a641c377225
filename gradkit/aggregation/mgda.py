"""MGDA: the shortest vector between the gradients of the tasks.

Equations: in the docstring of `mgda`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.makers import weights_of_gramian
from gradkit.catalogue import Paper, register
from gradkit.types import Scalar

PAPER = Paper("Multi-Task Learning as Multi-Objective Optimization", "Sener, Koltun", 2018, "1810.04650")


class _Walk(NamedTuple):
    """The weights, the last step, and the number of steps."""

    weights: jax.Array
    gamma: jax.Array
    steps: jax.Array


def mgda_weights(G: jax.Array, epsilon: Any, max_iters: int) -> jax.Array:
    """The weights of the shortest convex combination by Frank-Wolfe, from the Gramian."""
    m = len(G)

    def step(walk: _Walk) -> _Walk:
        a = walk.weights
        of_all = jnp.dot(G, a, precision="highest")
        t = jnp.argmin(of_all)
        A, B, C = of_all[t], jnp.dot(a, of_all, precision="highest"), G[t, t]
        apart = B + C - 2 * A
        between = (B - A) / jnp.where(apart > 0, apart, jnp.ones_like(apart))
        gamma = jnp.where(C <= A, jnp.ones_like(A), jnp.where(B <= A, jnp.zeros_like(A), between))
        return _Walk(a + gamma * (jax.nn.one_hot(t, m, dtype=a.dtype) - a), gamma, walk.steps + 1)

    def proceed(walk: _Walk) -> jax.Array:
        return (walk.gamma >= jnp.asarray(epsilon, G.dtype)) & (walk.steps < max_iters)

    start = _Walk(jnp.full((m,), 1 / m, G.dtype), jnp.asarray(jnp.inf, G.dtype), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(proceed, step, start).weights


def mgda(*, epsilon: Scalar = 1e-3, max_iters: int = 100) -> optax.GradientTransformationExtraArgs:
    """The multiple-gradient descent algorithm: a direction along which no task gets worse, as short as possible.

    result = w_1 g_1 + ... + w_m g_m, where w of the simplex minimises the norm of it, by Frank-Wolfe from w_i = 1 / m.
    With G the Gramian of the gradients, in every step:

        t = argmin_i (G w)_i,    A = (G w)_t,   B = w^T G w,   C = G_tt
        gamma = 1 if C <= A,     0 if B <= A,   else (B - A) / (B + C - 2 A)
        w <- (1 - gamma) w + gamma e_t                        until gamma < epsilon

    Args:
      epsilon: the step of the weights below which the search ends, >= 0. Default 1e-3 (torchjd).
      max_iters: steps of Frank-Wolfe, >= 1. Default 100 (torchjd).

    Returns:
      A transformation whose updates come in as one gradient per task and leave as one; the first link of a chain. No
      state. Sharded gradients cost one all-reduce of m^2 numbers. The result is short where tasks conflict, and is
      dominated by tasks with small gradients.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, leading axes that differ or are
        missing, gradients that do not match the parameters.

    Example:
      >>> tx = mgda()
      >>> g = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> print(tx.update(g, tx.init(g[0]))[0])
      [0.5 0.5]

    Reference: Sener, Koltun. Multi-Task Learning as Multi-Objective Optimization. 2018, arXiv 1810.04650, Algorithm 2.
    After `max_iters` steps of Frank-Wolfe the weights are near those of the shortest vector, not equal to them.
    """
    checks.real("epsilon", epsilon, "[0, inf)")
    max_iters = checks.integer("max_iters", max_iters, 1)

    def weigh(G: jax.Array, state: Any, **extra: Any) -> tuple[jax.Array, Any]:
        del extra
        return mgda_weights(G, epsilon, max_iters), state

    return weights_of_gramian("mgda", weigh)


register(mgda, form="aggregator", paper=PAPER, collectives="gramian", golden=("estimators/mgda",))
