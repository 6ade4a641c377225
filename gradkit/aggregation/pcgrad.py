"""PCGrad: the components of a task's gradient that conflict with other tasks are projected out."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.makers import weights_of_gramian
from gradkit.aggregation.orders import check_order, orders_of
from gradkit.catalogue import Paper, register
from gradkit.engine.keys import check_key, first_key
from gradkit.engine.lazy_gradients import HIGHEST
from gradkit.types import Key

PAPER = Paper("Gradient Surgery for Multi-Task Learning", "Yu et al.", 2020, "2001.06782")


def pcgrad_weights(G: jax.Array, order: jax.Array) -> jax.Array:
    """The weight of each gradient in PCGrad's sum, from the Gramian alone.

    Args:
      G: (m, m) Gramian.
      order: (m, n) integers; row i lists the tasks that task i visits; task i itself is skipped.
    """
    m = G.shape[0]
    norms = jnp.diagonal(G)

    def surgery(i: jax.Array, row: jax.Array) -> jax.Array:
        def visit(a: jax.Array, j: jax.Array) -> tuple[jax.Array, None]:
            inner = jnp.dot(G[j], a, precision=HIGHEST)
            conflict = (inner < 0) & (j != i) & (norms[j] > 0)
            return a.at[j].add(-jnp.where(conflict, inner / jnp.where(conflict, norms[j], 1), 0)), None

        return jax.lax.scan(visit, jax.nn.one_hot(i, m, dtype=G.dtype), row)[0]

    return jnp.sum(jax.vmap(surgery)(jnp.arange(m, dtype=jnp.int32), order.astype(jnp.int32)), axis=0)


class PCGradState(NamedTuple):
    """The random key of the next step; None where `update` gets it, or with a fixed order."""

    key: Any


def pcgrad(
    *, reduction: str = "sum", key: Key | None = None, order: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Gradient surgery: the sum of the tasks' gradients, each without the components that conflict with others.

    Equations, for each task i, over the other tasks j in random order, with a_i = g_i at the start; inner products run
    over the whole tree:

        a_i <- a_i - min(<a_i, g_j>, 0) / <g_j, g_j> g_j            g_j the original gradient
        result = a_1 + ... + a_m

    Args:
      reduction: "sum" (default, paper) or "mean" over the tasks.
      key: a random key (typed key or integer) from which the keys of all steps are derived, the same on all replicas.
        Default None: `update` needs `key=`, which takes precedence where both are given.
      order: a fixed order in place of random ones: integers of shape (m, m - 1), row i the tasks that task i visits, or
        (m, m), where i itself is skipped. Default None.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; put it first in
      a chain, `optax.chain(pcgrad(key=key), gk.adam(1e-3))`, whose parameters have no such axis. State: a key.
      Sharded gradients cost one sum of m^2 numbers. Zero gradients are left as they are.

    Raises:
      ValueError: at construction, an unknown reduction, an order that is none, or both key and order; when called,
        no key, leading axes that differ or are missing, an order of another m, gradients that do not match the
        parameters.

    Example:
      >>> tx = pcgrad(order=[[1], [0]])
      >>> g = jnp.array([[1.0, 0.0], [-1.0, 1.0]])
      >>> print(tx.update(g, tx.init(g[0]))[0])
      [0.5 1.5]

    Reference: Yu et al. Gradient Surgery for Multi-Task Learning. 2020, arXiv 2001.06782. For m = 2 no conflict is
    left; for more, one may be. The authors' code visits the tasks in a fixed order, since the result of its shuffle
    is dropped, visits task i itself as well, and divides by the norm of a zero gradient; this is the paper.
    """
    checks.choice("reduction", reduction, ["sum", "mean"])
    check_key(key)
    if key is not None and order is not None:
        raise ValueError("pcgrad: key must be None with an order, which replaces random orders; write key=None")
    rows = None if order is None else check_order(order)

    def init(params: Any) -> PCGradState:
        del params
        return PCGradState(first_key(key))

    def weigh(G: jax.Array, state: PCGradState, **extra: Any) -> tuple[jax.Array, PCGradState]:
        visits, kept = orders_of("pcgrad", rows, len(G), state.key, extra)
        weights = pcgrad_weights(G, visits)
        return (weights / len(G) if reduction == "mean" else weights), PCGradState(kept)

    return weights_of_gramian("pcgrad", weigh, init=init)


register(
    pcgrad,
    form="aggregator",
    paper=PAPER,
    needs=("key",),
    collectives="gramian",
    golden=("estimators/pcgrad",),
    notes="needs `key` in every update, or once at construction",
)
