"""Many short columns are sorted by exchanging rows: XLA's own sort along a short axis takes a hundred times longer.

Knuth's merge exchange (The Art of Computer Programming, volume 3, algorithm 5.2.2M) compares the same pairs of rows
whatever the values are: m log(m)^2 / 4 or so minima and maxima of arrays, which XLA makes one loop of.
"""

import functools

import jax
import jax.numpy as jnp

# More rows are left to XLA's sort: their programs would be long.
MOST_ROWS = 32


@functools.cache
def exchanges(m: int) -> tuple[tuple[int, int], ...]:
    """The pairs of places that are compared in turn, the smaller value going to the first.

    >>> exchanges(3)
    ((0, 2), (0, 1), (1, 2))
    """
    pairs = []
    top = 1 << max(m - 1, 0).bit_length() >> 1
    p = top
    while p:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(m - d) if i & p == r]
            if q == p:
                break
            q, r, d = q >> 1, p, q - p
        p >>= 1
    return tuple(pairs)


def sorted_rows(x: jax.Array) -> list[jax.Array]:
    """The rows of an array (m, ...) after each of its columns is sorted in ascending order, NaN last.

    >>> [row.tolist() for row in sorted_rows(jnp.array([[3.0, 1.0], [2.0, jnp.nan], [1.0, 5.0]]))]
    [[1.0, 1.0], [2.0, 5.0], [3.0, nan]]
    """
    if len(x) > MOST_ROWS:
        return [*jnp.sort(x, axis=0)]
    rows = [*x]
    for i, j in exchanges(len(rows)):
        a, b = rows[i], rows[j]
        # Where one is NaN the comparison is false, and a minimum would be NaN.
        first = (a <= b) | jnp.isnan(b)
        rows[i], rows[j] = jnp.where(first, a, b), jnp.where(first, b, a)
    return rows
