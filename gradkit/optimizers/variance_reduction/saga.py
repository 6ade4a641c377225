"""SAG and SAGA: the last gradient of every example, kept in a table."""

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
    """The link v = share (g - T_j) + A of both methods."""

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
    """A link before any optimizer: the gradient of one example, unbiased, with its noise reduced by a table (SAGA).

    Equations, with the gradient g of example j at the parameters, its last gradient T_j and the mean A of the table:

        v = g - T_j + A                    its mean over j is the full gradient
        A <- A + (g - T_j) / n
        T_j <- g

    Write `optax.chain(gk.saga_estimator(n), gk.sgd(0.1))`, then `tx.update(grads, state, params, index=j)` with the
    gradient of example j, drawn uniformly.

    Args:
      n: number of examples, or of fixed minibatches, >= 1: the number of rows of the table.

    Returns:
      A transformation that needs `index`, a scalar integer in [0, n); others are clipped to this range, since a
      compiled program cannot raise. State: n + 1 words per parameter. The table starts at 0; the gradients of a first
      pass over the data can be inserted with `state._replace(table=..., mean=...)`. Elementwise: no collective.

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
    """A link before any optimizer: the mean of the last gradients of all examples (SAG).

    Equations: those of `saga_estimator`, with another v, which is biased and has less variance:

        v = (g - T_j) / n + A

    Args:
      n: number of examples, or of fixed minibatches, >= 1.

    Returns:
      A transformation that needs `index`, as `saga_estimator`. State: n + 1 words per parameter. Elementwise: no
      collective. Examples that have not been seen count as zero gradients.

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
