"""UPGrad: each task's gradient is projected onto the directions that harm no task; the projections are averaged."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.makers import weights_of_gramian
from gradkit.aggregation.preferences import check_vector, vector_of
from gradkit.catalogue import Paper, register
from gradkit.linalg import solve_lcp
from gradkit.types import Scalar

PAPER = Paper("Jacobian Descent for Multi-Objective Optimization", "Quinton, Rey", 2024, "2406.16232")


def regularized(G: jax.Array, norm_eps: Any, reg_eps: Any) -> jax.Array:
    """The Gramian of trace 1, or 0 where its trace is below `norm_eps`, with `reg_eps` on the diagonal."""
    trace = jnp.trace(G)
    vanishes = (trace < jnp.asarray(norm_eps, G.dtype)) | (trace == 0)
    G = jnp.where(vanishes, jnp.zeros_like(G), G / jnp.where(vanishes, jnp.ones_like(trace), trace))
    return G + jnp.asarray(reg_eps, G.dtype) * jnp.eye(len(G), dtype=G.dtype)


def upgrad_weights(G: jax.Array, p: jax.Array, norm_eps: Any, reg_eps: Any, max_iters: int) -> jax.Array:
    """The weight of each gradient in UPGrad's combination, from the Gramian and the preferences alone."""
    G = regularized(G, norm_eps, reg_eps)
    # The problem scales with p_i, so only its sign enters the solver.
    s = jax.vmap(lambda sign, column: solve_lcp(G, sign * column, max_iters=max_iters))(jnp.sign(p), G.T)
    return p + jnp.sum(jnp.abs(p)[:, None] * s, axis=0)


def upgrad(
    *, pref_vector: Any = None, norm_eps: Scalar = 1e-4, reg_eps: Scalar = 1e-4, max_iters: int = 100
) -> optax.GradientTransformationExtraArgs:
    """Unconflicting projection of gradients: a direction that, to first order, makes no task worse.

    Equations, with preferences p and the Gramian G of the gradients, its trace normalized to 1 and reg_eps I added:

        v_i = argmin of v^T G v over v >= p_i e_i (entry by entry)
        w = v_1 + ... + v_m,    result = w_1 g_1 + ... + w_m g_m

    v_i is p_i e_i + |p_i| s, where s solves the linear complementarity problem of G and +-G e_i.

    Args:
      pref_vector: p, m finite numbers, used as they are. Default 1 / m each: the result then has the scale of the
        mean gradient, and IS the mean where no two gradients conflict.
      norm_eps: where the sum of all squared gradient norms is below this, >= 0, gradients count as zero, and the result
        is their weighted mean, without resolving conflicts. Default 1e-4 (torchjd). The threshold is absolute, and
        small gradients are common late in training; with 0 conflicts are resolved at every scale, also for gradients
        that are exactly zero.
      reg_eps: regularization of the normalized Gramian, > 0. Default 1e-4 (torchjd), with which inner products with the
        result may be negative by about 2e-4 of the sum of squared norms. In float32 not much less is possible.
      max_iters: bound on the pivots of the solver, >= 1. Default 100; a few are enough.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; put it first in
      a chain, `optax.chain(upgrad(), gk.adam(1e-3))`, whose parameters have no such axis. No state. Sharded
      gradients cost one sum of m^2 numbers. Gradients that are not finite give NaN.

    Raises:
      ValueError: at construction, a preference that is not a vector of numbers, a hyperparameter outside its range;
        when called, a preference of another length, leading axes that differ or are missing, gradients that do
        not match the parameters.

    Example:
      >>> tx = upgrad(reg_eps=1e-6)
      >>> g = jnp.array([[1.0, 0.0], [-1.0, 1.0]])
      >>> [round(float(x), 3) for x in tx.update(g, tx.init(g[0]))[0]]
      [0.25, 0.75]

    Reference: Quinton, Rey. Jacobian Descent for Multi-Objective Optimization. 2024, arXiv 2406.16232. Weights
    equal those of torchjd; the quadratic programs are solved by block principal pivoting instead of an active set.
    """
    checks.real("norm_eps", norm_eps, "[0, inf)")
    checks.real("reg_eps", reg_eps, "(0, inf)")
    checks.integer("max_iters", max_iters, 1)
    check_vector("pref_vector", pref_vector)

    def weigh(G: jax.Array, state: optax.EmptyState, **extra: Any) -> tuple[jax.Array, optax.EmptyState]:
        del extra
        p = vector_of("upgrad", "pref_vector", pref_vector, len(G), G.dtype)
        return upgrad_weights(G, p, norm_eps, reg_eps, max_iters), state

    return weights_of_gramian("upgrad", weigh)


register(upgrad, form="aggregator", paper=PAPER, collectives="gramian", golden=("estimators/upgrad",))
