"""Core-sets: examples from which no other example is far."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gradkit import checks
from gradkit.batches.greedy_select import PAPER, greedy_select
from gradkit.catalogue import register
from gradkit.engine.arrays import reals, refuse
from gradkit.engine.keys import as_key, check_key
from gradkit.types import Key


class KCentres(NamedTuple):
    """What `k_centre_greedy` has chosen: rows in the order of choice, and the largest distance of a row from the rows
    that are chosen or were there before."""

    indices: jax.Array
    radius: jax.Array


def _initial(initial: Any, n: int) -> jax.Array:
    """Distances before the first choice: 0 of what is there, infinity of the rest."""
    rows = jnp.asarray(initial)
    if rows.ndim != 1 or not jnp.issubdtype(rows.dtype, jnp.integer):
        raise ValueError(
            f"k_centre_greedy: initial must be rows of features, integers (m,), got {rows.dtype} of shape {rows.shape}"
            "; write initial=None for none"
        )
    if not isinstance(rows, Tracer) and not ((np.asarray(rows) >= 0) & (np.asarray(rows) < n)).all():
        raise ValueError(f"k_centre_greedy: initial must be rows from 0 to {n - 1}, got {np.asarray(rows).tolist()}")
    return rows


def k_centre_greedy(features: Any, initial: Any, k: int, *, key: Key | None = None) -> KCentres:
    """Examples to be labelled next: every one the farthest from all that are labelled or chosen already.

        d_i = min over the chosen j of |x_i - x_j|
        k times: pick argmax_i d_i;    d_i <- min(d_i, |x_i - x_pick|)            radius = max_i d_i

    The radius is at most twice the smallest one that k more centres can have.

    Args:
      features: x, (n, d), floating point: the paper takes the last hidden layer.
      initial: rows that are labelled, integers (m,); None or empty: the first of the k is drawn with `key`.
      k: how many are chosen, from 1 to n - m.
      key: a typed key or an integer, for a start without rows.

    Returns:
      `KCentres`. Can be jitted: k passes over the features. Ties go to the lowest row. Of features that are sharded
      along rows, every pick moves a row and two numbers.

    Raises:
      ValueError: an argument outside its range; neither rows to begin with nor a key.

    Example:
      >>> chosen = k_centre_greedy(jnp.array([[0.0], [1.0], [10.0], [4.0]]), [0], 2)
      >>> chosen.indices.tolist(), float(chosen.radius)
      ([2, 3], 1.0)

    Reference: Sener, Savarese. Active Learning for Convolutional Neural Networks: A Core-Set Approach. 2018, arXiv
    1708.00489. A public version that has nothing to begin with takes row 0 every time, whatever the features. The
    paper's robust variant, a mixed integer programme that leaves outliers out, is not here. Distances are differences
    of features, not of squares, which cancel.
    """
    checks.arrays(features=features, initial=initial)
    checks.integer("k", k, 1)
    check_key(key)
    x = reals("k_centre_greedy", "features", features, 2)
    refuse("k_centre_greedy", "features", x, np.isnan, "numbers; leave rows with NaN out")
    n = len(x)
    rows = _initial(np.zeros(0, np.int32) if initial is None else initial, n)
    k = checks.integer("k", k, 1, maximum=n - len(rows))

    places = jnp.arange(n, dtype=jnp.int32)

    def distance(j: jax.Array) -> jax.Array:
        # A sum, of sharded rows an all-reduce of one row; for x[j] the compiler gathers all of them.
        row = jnp.sum(jnp.where((places == j)[:, None], x, jnp.zeros_like(x)), axis=0)
        return jnp.sum(jnp.square(x - row[None]), axis=1)

    def add(nearest: jax.Array, j: jax.Array) -> jax.Array:
        return jnp.minimum(nearest, distance(j))

    nearest, free = jnp.full((n,), jnp.inf, x.dtype), jnp.ones((n,), bool)
    rows = rows.astype(jnp.int32)
    chosen: list[jax.Array] = []
    if len(rows):
        nearest = jax.lax.fori_loop(0, len(rows), lambda i, nearest: add(nearest, rows[i]), nearest)
        free = free.at[rows].set(False)
    else:
        if key is None:
            raise ValueError("k_centre_greedy: key must be given where initial has no rows, got None; write key=0")
        start = jax.random.randint(as_key(key), (), 0, n, jnp.int32)
        nearest, free = add(nearest, start), free.at[start].set(False)
        chosen.append(start[None])
    if k > len(chosen):
        picked, nearest = greedy_select(lambda d: d, add, nearest, k - len(chosen), candidates=free)
        chosen.append(picked)
    return KCentres(jnp.concatenate(chosen), jnp.sqrt(jnp.max(nearest)))


register(
    k_centre_greedy,
    form="function",
    paper=PAPER,
    golden=("second_shelf/k_centre_greedy",),
    example={"features": jax.ShapeDtypeStruct((16, 4), "float32"), "initial": (0,), "k": 3},
)
