"""Linear complementarity, against enumeration of all supports and on the hard cases of the dual cone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.linalg import solve_lcp

pytestmark = pytest.mark.slow

REG = 1e-4


def enumerate_supports(G: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The only w with w >= 0, Gw + q >= 0, complementary: the least violation over all 2^m supports."""
    m = len(q)
    best, answer = np.inf, np.zeros(m)
    for support in itertools.product([False, True], repeat=m):
        F = np.array(support)
        w = np.zeros(m)
        if F.any():
            w[F] = np.linalg.solve(G[np.ix_(F, F)], -q[F])
        violation = max(-w.min(), -(G @ w + q)[~F].min(initial=0.0), 0.0)
        if violation < best:
            best, answer = violation, w
    return answer


def jacobians() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    conflict = rng.standard_normal((6, 20)) - 2 * rng.standard_normal(20)
    return {
        "random": rng.standard_normal((6, 20)),
        "conflicting": conflict - conflict.mean(0),
        "rank deficient": rng.standard_normal((6, 2)) @ rng.standard_normal((2, 20)),
        "duplicates": np.repeat(rng.standard_normal((3, 20)), 2, axis=0),
        "antiparallel": np.kron(np.array([[1.0], [-1.0]]), rng.standard_normal((3, 20))),
        "zero row": np.concatenate([np.zeros((1, 20)), rng.standard_normal((5, 20))]),
        "scales": rng.standard_normal((6, 20)) * 10.0 ** np.arange(-3, 3)[:, None],
    }


@pytest.mark.parametrize("name", list(jacobians()))
def test_against_enumeration(name: str, x64: None) -> None:
    """All columns of the Gramian as right-hand sides, in one vmapped program."""
    J = jacobians()[name]
    G = J @ J.T / np.sum(J**2) + REG * np.eye(6)
    got = np.asarray(SOLVE(jnp.asarray(G), jnp.asarray(G)))
    want = np.stack([enumerate_supports(G, q) for q in G])
    # Backward stable solves: the condition number, at most (1 + REG) / REG = 1e4, times a few roundings.
    np.testing.assert_allclose(got, want, atol=1e4 * 8 * 2.0**-53 * max(1, np.abs(want).max()))


SOLVE = jax.jit(jax.vmap(solve_lcp, in_axes=(None, 0)))


def test_optimality_of_larger_problems(x64: None) -> None:
    """m = 32, beyond enumeration: the three conditions themselves."""
    rng = np.random.default_rng(1)
    J = rng.standard_normal((32, 40)) - 0.5
    G = J @ J.T / np.sum(J**2) + REG * np.eye(32)
    q = rng.standard_normal((5, 32))
    w = np.asarray(SOLVE(jnp.asarray(G), jnp.asarray(q)))
    y = w @ G + q
    # w is of size |q| / REG at most; y a difference of numbers of size |G w|.
    size = np.abs(w).max()
    assert (w >= 0).all() and (y >= -size * 2.0**-45).all()
    assert np.abs(w * y).max() <= size**2 * 2.0**-45


def test_float32_stays_float32() -> None:
    w = solve_lcp(jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.array([-1.0, 1.0]))
    assert w.dtype == jnp.float32
    np.testing.assert_allclose(w, [0.5, 0.0], rtol=2.0**-22)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_nan_and_ends(bad: float) -> None:
    """Alone in its row of a vmapped call."""
    G = jnp.eye(3)
    q = jnp.array([[-1.0, 2.0, 3.0], [bad, -1.0, 1.0]])
    w = jax.vmap(solve_lcp, in_axes=(None, 0))(G, q)
    assert w[0].tolist() == [1.0, 0.0, 0.0] and jnp.isnan(w[1]).all()
    assert jnp.isnan(solve_lcp(G.at[1, 1].set(bad), q[0])).all()


def test_bound_on_pivots_and_bad_shapes() -> None:
    assert solve_lcp(jnp.eye(3), -jnp.ones(3), max_iters=1).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="max_iters must be an integer >= 1"):
        solve_lcp(jnp.eye(3), jnp.ones(3), max_iters=0)
    for G, q in ((jnp.eye(3), jnp.ones(2)), (jnp.ones((2, 3)), jnp.ones(2)), (jnp.eye(2), jnp.ones((2, 1)))):
        with pytest.raises(ValueError, match="of shape"):
            solve_lcp(G, q)
