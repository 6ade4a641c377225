"""SAG and SAGA: the last gradient of every example, kept in a table.

With the gradient g of example j at the parameters, T_j what the table has of it and A the mean of the table:

    SAGA    v = g - T_j + A            its mean over j is the full gradient
    SAG     v = (g - T_j) / n + A      biased, with less variance
    both    A <- A + (g - T_j) / n,    T_j <- g
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import need, rows_of, transformation, zeros

PAPER = Paper("Optimization Methods for Large-Scale Machine Learning", "Bottou, Curtis, Nocedal", 2016, "1606.04838")


class TableState(NamedTuple):
    """The last gradient of every example, along a leading axis, and their mean."""

    table: Any
    mean: Any


def _with_table(method: str, n: int, share: float) -> optax.GradientTransformationExtraArgs:
    """v = share (g - T_j) + A."""

    def init(params: optax.Params) -> TableState:
        return TableState(jax.tree.map(lambda t: rows_of(t, n), zeros(params)), zeros(params))

    def update(updates: Any, state: TableState, params: Any = None, **extra: Any) -> tuple[Any, TableState]:
        del params
        j = jnp.asarray(need(method, extra, "index"))
        if j.shape != () or not jnp.issubdtype(j.dtype, jnp.integer):
            raise ValueError(f"{method}: index must be one integer, got {j.dtype} of shape {j.shape}")
        j = jnp.clip(j, 0, n - 1)
        known = jax.tree.map(lambda t: jax.lax.dynamic_index_in_dim(t, j, keepdims=False), state.table)
        change = jax.tree.map(lambda g, old: g - old, updates, known)
        v = jax.tree.map(lambda d, a: share * d + a, change, state.mean)
        mean = jax.tree.map(lambda d, a: a + d / n, change, state.mean)
        table = jax.tree.map(lambda t, g: jax.lax.dynamic_update_index_in_dim(t, g, j, 0), state.table, updates)
        return v, TableState(table, mean)

    return transformation(method, init, update, complex_leaves=True)


def saga_estimator(n: int) -> optax.GradientTransformationExtraArgs:
    """A link ahead of any optimizer: the gradient of one example, unbiased, without its noise.

    Equations: at the head of this file. `optax.chain(gk.saga_estimator(n), gk.sgd(0.1))`; then
    `tx.update(grads, state, params, index=j)` with the gradient of example j, drawn uniformly.

    Args:
      n: examples, or fixed minibatches, >= 1: as many slots has the table.

    Returns:
      A transformation that needs `index`, a scalar integer in [0, n); others count as the nearer end, since a
      compiled program cannot raise. State: n + 1 words per parameter. The table starts at 0; a pass over the data that
      fills it can be put in place with `state._replace(table=..., mean=...)`. Elementwise: no collective.

    Raises:
      ValueError: `n` not an integer >= 1; at `update`, no index.

    Example:
      >>> tx, x = saga_estimator(2), jnp.array(0.0)
      >>> state = tx.init(x)
      >>> for j, g in ((0, 1.0), (1, 3.0), (0, 1.0)):
      ...     v, state = tx.update(jnp.array(g), state, index=j)
      >>> float(v), float(state.mean)
      (2.0, 2.0)

    Reference: Bottou, Curtis, Nocedal. Optimization Methods for Large-Scale Machine Learning. 2016, arXiv 1606.04838;
    Defazio, Bach, Lacoste-Julien. SAGA. 2014, arXiv 1407.0202.
    """
    n = checks.integer("n", n, 1)
    return _with_table("saga_estimator", n, 1.0)


def sag_estimator(n: int) -> optax.GradientTransformationExtraArgs:
    """A link ahead of any optimizer: the mean of the last known gradients of all examples.

    Equations: at the head of this file. Used as `saga_estimator`.

    Args:
      n: examples, or fixed minibatches, >= 1.

    Returns:
      A transformation that needs `index`, as `saga_estimator`. State: n + 1 words per parameter. Elementwise: no
      collective. Until every example was seen, those not seen count as zero gradients.

    Raises:
      ValueError: `n` not an integer >= 1; at `update`, no index.

    Example:
      >>> tx, x = sag_estimator(2), jnp.array(0.0)
      >>> v, _ = tx.update(jnp.array(3.0), tx.init(x), index=1)
      >>> float(v)
      1.5

    Reference: Bottou, Curtis, Nocedal. Optimization Methods for Large-Scale Machine Learning. 2016, arXiv 1606.04838;
    Le Roux, Schmidt, Bach. A Stochastic Gradient Method with an Exponential Convergence Rate. 2012, arXiv 1202.6258.
    """
    n = checks.integer("n", n, 1)
    return _with_table("sag_estimator", n, 1 / n)


register(saga_estimator, form="primitive", paper=PAPER, needs=("index",), words=4, example={"n": 3})
register(sag_estimator, form="primitive", paper=PAPER, needs=("index",), words=4, example={"n": 3})
