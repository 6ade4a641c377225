"""GradDrop: one sign per coordinate, by loops over coordinates and in expectation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.aggregation import graddrop
from tests.papers.stacks import aggregate, draw, runner, tree_of


def by_loops(J: np.ndarray, u: np.ndarray, f: Any = None, leak: Any = None) -> np.ndarray:
    out = np.zeros(J.shape[1])
    for c, column in enumerate(J.T):
        total = np.abs(column).sum()
        P = 0.5 * (1 + (column.sum() / total if total else 0))
        P = P if f is None else f(P)
        for i, x in enumerate(column):
            kept = (u[c] < P and x > 0) or (u[c] > P and x < 0)
            rate = 0 if leak is None else leak[i]
            out[c] += (rate + (1 - rate) * kept) * x
    return out


@pytest.mark.parametrize("leak", [None, [0.0, 0.5, 1.0, 0.2]])
@pytest.mark.parametrize("power", [None, 3])
def test_against_loops(leak: object, power: object, x64: None) -> None:
    J, u = draw(0), np.random.default_rng(1).uniform(size=9)
    J[:, 2] = 0
    f = None if power is None else lambda p: p**power
    uniform = jax.tree.map(lambda x: x[0], tree_of(u[None]))
    out = aggregate(graddrop(f=f, leak=leak, uniform=uniform), J)
    np.testing.assert_allclose(out, by_loops(J, u, f, leak), rtol=1e-13, atol=1e-15)


def test_one_sign_is_left_in_every_coordinate_and_drawn_with_its_weight(x64: None, key: jax.Array) -> None:
    """The sum of the positive values with probability P, else that of the negative ones."""
    J = draw(2)
    run, state, rows = runner(graddrop(key=key)), None, []
    for _ in range(300):
        out, state = run(J, state)
        rows.append(out)
    up, down = np.maximum(J, 0).sum(0), np.minimum(J, 0).sum(0)
    P = up / (up - down)
    rows = np.array(rows)
    risen = np.isclose(rows, up)
    assert (risen | np.isclose(rows, down)).all()
    # Five deviations of a mean of 300 draws of probability P.
    assert (np.abs(risen.mean(0) - P) <= 5 * np.sqrt(P * (1 - P) / 300) + 1e-9).all()


def test_bad_input(key: jax.Array) -> None:
    with pytest.raises(ValueError, match=r"leak must be numbers in \[0, 1\]"):
        graddrop(leak=[0.5, 1.5])
    with pytest.raises(ValueError, match="f must be callable"):
        graddrop(f=0.5)
    with pytest.raises(ValueError, match="a key or uniform numbers, not both"):
        graddrop(key=key, uniform=jnp.zeros(3))
    with pytest.raises(ValueError, match=r"graddrop: leak has shape \(2,\), and 4 gradients came"):
        aggregate(graddrop(key=key, leak=[0.5, 1.0]), draw(0).astype(np.float32))
