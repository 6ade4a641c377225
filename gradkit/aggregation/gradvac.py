"""Gradient Vaccine: gradients are moved until their cosines are as large as they have been on average.

Equations: in the docstring of `gradvac`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.makers import weights_of_gramian
from gradkit.aggregation.orders import check_order, orders_of
from gradkit.aggregation.preferences import check_count, dtype_of
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar
from gradkit.engine.keys import check_key, first_key
from gradkit.types import Key, Scalar

PAPER = Paper(
    "Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively Multilingual Models",
    "Wang et al.", 2020, "2010.05874",
)  # fmt: skip


class GradVacState(NamedTuple):
    """The moving averages of the cosines of all pairs, and the random key of the next step."""

    phi: jax.Array
    key: Any


def vaccinate(G: jax.Array, phi: jax.Array, order: jax.Array, beta: Any, eps: Scalar) -> tuple[jax.Array, jax.Array]:
    """The weight of each gradient in the sum, and the new averages, from the Gramian."""
    m = len(G)
    norms = jnp.sqrt(jnp.diagonal(G))
    beta, eps = scalar(beta, G), scalar(eps, G)

    def task(i: jax.Array, goals: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        def visit(carry: tuple[jax.Array, jax.Array], j: jax.Array) -> tuple[Any, None]:
            c, goals = carry
            of_all = jnp.dot(c, G, precision="highest")
            own = jnp.sqrt(jnp.maximum(jnp.dot(of_all, c, precision="highest"), 0))
            p, h = of_all[j] / (own * norms[j] + eps), goals[j]
            sine_p, sine_h = (jnp.sqrt(jnp.maximum(1 - jnp.square(x), 0)) for x in (p, h))
            more = own * (h * sine_p - p * sine_h) / (norms[j] * sine_h + eps)
            other = j != i
            # A zero gradient has no direction that another could be moved to.
            low = other & (p < h) & (norms[j] > 0)
            c = c.at[j].add(jnp.where(low, more, jnp.zeros_like(more)))
            goals = goals.at[j].set(jnp.where(other, (1 - beta) * h + beta * p, h))
            return (c, goals), None

        return jax.lax.scan(visit, (jax.nn.one_hot(i, m, dtype=G.dtype), goals), row)[0]

    C, phi = jax.vmap(task)(jnp.arange(m, dtype=jnp.int32), phi, order.astype(jnp.int32))
    return jnp.sum(C, axis=0), phi


def gradvac(
    *, num_tasks: int, beta: Scalar = 0.5, eps: Scalar = 1e-8, key: Key | None = None, order: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Gradient Vaccine: gradient surgery also where gradients do not conflict, towards the usual cosine.

    With the moving average phi_ij of the cosine of the gradients i and j, from 0: for each task i, over the other tasks
    j in random order, starting from a = g_i:

        p = <a, g_j> / (|a| |g_j| + eps),   h = phi_ij
        if p < h:   a <- a + |a| (h sqrt(1 - p^2) - p sqrt(1 - h^2)) / (|g_j| sqrt(1 - h^2) + eps) g_j
        phi_ij <- (1 - beta) h + beta p

    and the result is the sum of the a's. With all phi at 0 it is `gk.aggregation.pcgrad`.

    Args:
      num_tasks: m, the number of tasks, >= 1: the state has m^2 numbers.
      beta: weight of the new cosine in the average, in [0, 1]. Default 0.5 (torchjd); the paper takes 0.01.
      eps: added to denominators, > 0. Default 1e-8.
      key: a random key (typed key or integer) from which the orders of all steps follow. Default None: `update` needs
        `key=`, which takes precedence where both are given. The same on all replicas.
      order: instead of random orders, these at every step: integers of shape (m, m - 1), row i the tasks that task i
        visits, or (m, m), where i itself is passed over. Default None.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; put it first in a
      chain, `optax.chain(gradvac(num_tasks=3, key=0), gk.adam(1e-3))`. State: m^2 numbers and a key. Sharded gradients
      cost one all-reduce of m^2 numbers. Zero gradients are left as they are.

    Raises:
      ValueError: at construction, a hyperparameter outside its range, an order that is none, or both key and order;
        when called, no key, another number of gradients, leading axes that differ or are missing, gradients that do not
        match the parameters.

    Example:
      >>> tx = gradvac(num_tasks=2, order=[[1], [0]])
      >>> g = jnp.array([[1.0, 0.0], [-1.0, 1.0]])
      >>> u, state = tx.update(g, tx.init(g[0]))
      >>> [round(float(x), 3) for x in u], round(float(state.phi[0, 1]), 3)  # the first step is PCGrad's
      ([0.5, 1.5], -0.354)

    Reference: Wang et al. Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively
    Multilingual Models. 2020, arXiv 2010.05874. Inner products run over the whole tree; the paper also does it per
    layer.
    """
    num_tasks = checks.integer("num_tasks", num_tasks, 1)
    checks.real("beta", beta, "[0, 1]")
    checks.real("eps", eps, "(0, inf)")
    check_key(key)
    if key is not None and order is not None:
        raise ValueError("gradvac takes a key or an order, not both: an order leaves nothing to be drawn")
    rows = None if order is None else check_order(order)

    def init(params: Any) -> GradVacState:
        return GradVacState(jnp.zeros((num_tasks, num_tasks), dtype_of(params)), first_key(key))

    def weigh(G: jax.Array, state: GradVacState, **extra: Any) -> tuple[jax.Array, GradVacState]:
        check_count("gradvac", num_tasks, len(G))
        visits, kept = orders_of("gradvac", rows, num_tasks, state.key, extra)
        weights, phi = vaccinate(G, state.phi.astype(G.dtype), visits, beta, eps)
        return weights, GradVacState(phi.astype(state.phi.dtype), kept)

    return weights_of_gramian("gradvac", weigh, init=init)


register(
    gradvac,
    form="aggregator",
    paper=PAPER,
    needs=("key",),
    collectives="gramian",
    golden=("estimators/gradvac",),
    example={"num_tasks": 3},
    notes="needs `key` in every update, or once at construction",
)
