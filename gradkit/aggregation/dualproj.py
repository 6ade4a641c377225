"""DualProj: the preferred combination of the gradients, projected once onto the directions that harm no task.

Equations: in the docstring of `dualproj`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.makers import weights_of_gramian
from gradkit.aggregation.preferences import check_vector, vector_of
from gradkit.aggregation.upgrad import regularized
from gradkit.catalogue import Paper, register
from gradkit.linalg import solve_lcp
from gradkit.types import Scalar

PAPER = Paper("Gradient Episodic Memory for Continual Learning", "Lopez-Paz, Ranzato", 2017, "1706.08840")


def dualproj(
    *, pref_vector: Any = None, norm_eps: Scalar = 1e-4, reg_eps: Scalar = 1e-4, max_iters: int = 100
) -> optax.GradientTransformationExtraArgs:
    """Projection of the mean gradient onto the dual cone of all gradients: no task gets worse, to first order.

    With G the Gramian of the gradients, its trace normalised to 1 and reg_eps I added, and preferences p:

        w = the v >= p (entry by entry) that minimises v^T G v
        result = w_1 g_1 + ... + w_m g_m

    w is p + s, where s solves the linear complementarity problem of G and G p. `gk.aggregation.upgrad` projects every
    gradient by itself; this projects their combination, in which a large gradient outweighs small ones.

    Args:
      pref_vector: p, m finite numbers, used as they are. Default 1 / m each: the result then IS the mean where that
        conflicts with no gradient.
      norm_eps: where the sum of all squared gradient norms is below this, >= 0, the result is the weighted mean,
        conflicts and all. Default 1e-4 (torchjd). A trap: the threshold is absolute; 0 resolves conflicts at every
        scale, and still copes with zero.
      reg_eps: regularisation of the normalised Gramian, > 0. Default 1e-4 (torchjd), with which inner products with
        the result may be negative by about 2e-4 of the sum of squared norms.
      max_iters: bound on the pivots of the solver, >= 1. Default 100; it takes a few.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; put it first in
      a chain, `optax.chain(dualproj(), gk.adam(1e-3))`. No state. Sharded gradients cost one all-reduce of m^2 numbers.

    Raises:
      ValueError: at construction, a preference that is not a vector of numbers, a hyperparameter outside its range;
        when called, a preference of another length, leading axes that differ or are missing, gradients that do
        not match the parameters.

    Example:
      >>> tx = dualproj(reg_eps=1e-6)
      >>> g = jnp.array([[1.0, 0.0], [-3.0, 1.0]])  # the mean harms the first
      >>> [abs(round(float(x), 3)) for x in tx.update(g, tx.init(g[0]))[0]]
      [0.0, 0.5]

    Reference: Lopez-Paz, Ranzato. Gradient Episodic Memory for Continual Learning. 2017, arXiv 1706.08840, for one
    gradient and those of a memory; as an aggregator in Quinton, Rey. Jacobian Descent for Multi-Objective Optimization.
    2024, arXiv 2406.16232. Weights equal those of torchjd; the quadratic program is solved by block principal pivoting.
    """
    checks.real("norm_eps", norm_eps, "[0, inf)")
    checks.real("reg_eps", reg_eps, "(0, inf)")
    checks.integer("max_iters", max_iters, 1)
    check_vector("pref_vector", pref_vector)

    def weigh(G: jax.Array, state: optax.EmptyState, **extra: Any) -> tuple[jax.Array, optax.EmptyState]:
        del extra
        p = vector_of("dualproj", "pref_vector", pref_vector, len(G), G.dtype)
        G = regularized(G, norm_eps, reg_eps)
        return p + solve_lcp(G, jnp.dot(G, p, precision="highest"), max_iters=max_iters), state

    return weights_of_gramian("dualproj", weigh)


register(dualproj, form="aggregator", paper=PAPER, collectives="gramian", golden=("estimators/dualproj",))
