"""Sorting of short columns by exchanges of rows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.engine.sorting import MOST_ROWS, exchanges, sorted_rows


@pytest.mark.parametrize("m", range(1, 11))
def test_the_exchanges_sort_all_columns_of_zeros_and_ones(m: int) -> None:
    """A network that sorts these sorts everything."""
    columns = np.array([*itertools.product((0, 1), repeat=m)]).T.copy()
    for i, j in exchanges(m):
        columns[[i, j]] = columns[[i, j]].min(0, initial=1), columns[[i, j]].max(0, initial=0)
    np.testing.assert_array_equal(columns, np.sort(columns, axis=0))


@pytest.mark.parametrize("m", [1, 2, 5, MOST_ROWS, MOST_ROWS + 1])
def test_rows_are_those_of_a_sorted_array(m: int) -> None:
    """NaN and infinities too, as NumPy sorts them."""
    x = np.random.default_rng(0).standard_normal((m, 3, 5)).astype(np.float32)
    x[0, 0, 0], x[-1, 1, :2], x[m // 2, 2, 2] = np.nan, np.inf, -np.inf
    found = np.stack(jax.jit(sorted_rows)(jnp.asarray(x)))
    np.testing.assert_array_equal(found, np.sort(x, axis=0))
