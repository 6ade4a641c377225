"""The order in which every task visits the others: given, or drawn anew in every step."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.engine.keys import needed_key
from gradkit.types import Key


def check_order(order: Any) -> np.ndarray:
    """The orders as an array; raises where they are none.

    >>> check_order([[1], [0]]).tolist()
    [[1], [0]]
    """
    rows = np.asarray(order)
    m = len(rows) if rows.ndim == 2 else 0
    if m and rows.dtype.kind in "iu" and rows.shape[1] in (m - 1, m):
        others = [sorted(j for j in row if j != i) == [j for j in range(m) if j != i] for i, row in enumerate(rows)]
        if all(others):
            return rows
    raise ValueError(
        f"order must be integers (m, m - 1) whose row i has every task but i once, or (m, m) with i too, got {order!r}"
    )


def orders_of(method: str, rows: Any, m: int, key: Key | None, extra: Mapping[str, Any]) -> tuple[jax.Array, Any]:
    """The orders of this step, (m, m - 1) or (m, m), and the key to keep.

    Args:
      method: the public name, for messages.
      rows: the orders that were given, or None.
      m: the number of gradients that came.
      key: the key in the state, or None.
      extra: the extra arguments of the step, where `key` is another.
    """
    if rows is not None:
        if len(rows) != m:
            raise ValueError(f"{method}: order is for {len(rows)} gradients, and {m} came; give one row for each")
        return jnp.asarray(rows), key
    kept, now = needed_key(method, key, extra.get("key"))
    return jax.vmap(lambda k: jax.random.permutation(k, m))(jax.random.split(now, m)), kept
