"""Delayed dual averaging: without delays AdaGrad's norm, and a point that does not depend on the order of arrival."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.parallel import delayed_dual_averaging, optimistic_delayed_dual_averaging

G = np.random.default_rng(0).standard_normal((8, 4))
START = np.array([1.0, -2.0, 0.5, 3.0])


def play(tx: Any, g: np.ndarray, outstanding: np.ndarray | None = None) -> Any:
    """(path of the parameters, last state) over two leaves."""
    x = {"a": jnp.asarray(START[:1]), "b": jnp.asarray(START[1:])}
    o = np.zeros(len(g)) if outstanding is None else outstanding

    def step(carry: Any, row: Any) -> Any:
        x, state = carry
        g, o = row
        u, state = tx.update({"a": g[:1], "b": g[1:]}, state, x, outstanding_norms=o)
        x = jax.tree.map(jnp.add, x, u)
        return (x, state), jnp.concatenate([x["a"], x["b"]])

    run = jax.jit(lambda x, rows: jax.lax.scan(step, (x, tx.init(x)), rows))
    (_, state), path = run(x, (jnp.asarray(g), jnp.asarray(o)))
    return np.asarray(path), state


def test_without_delays_it_is_dual_averaging_with_the_norm_of_adagrad(x64: None) -> None:
    path, _ = play(delayed_dual_averaging(2.0, initial=0.3), G)
    eta = 2.0 / np.sqrt(0.3 + np.cumsum((G**2).sum(1)))
    np.testing.assert_allclose(path, START - eta[:, None] * np.cumsum(G, 0), rtol=1e-12)


def test_once_all_have_arrived_the_order_is_forgotten(x64: None) -> None:
    order = np.random.default_rng(1).permutation(8)
    tx = delayed_dual_averaging(2.0)
    np.testing.assert_allclose(play(tx, G)[0][-1], play(tx, G[order])[0][-1], rtol=1e-12)


def test_the_lag_of_a_constant_delay(x64: None) -> None:
    """Norms of 3 and a delay of 2: when a gradient was played, the two before it were outstanding."""
    g = 3.0 * G / np.linalg.norm(G, axis=1, keepdims=True)
    before = 3.0 * np.minimum(np.arange(8), 2)
    _, state = play(delayed_dual_averaging(1.0), g, before)
    pairs = sum(min(t, 2) for t in range(8))
    np.testing.assert_allclose(state.lag, 9.0 * (8 + 2 * pairs), rtol=1e-12)


def test_the_optimistic_point_is_ahead_by_the_last_gradient(x64: None) -> None:
    own, _ = play(delayed_dual_averaging(2.0), G)
    ahead, _ = play(optimistic_delayed_dual_averaging(2.0, lookahead=3.0), G)
    eta = 2.0 / np.sqrt(1.0 + np.cumsum((G**2).sum(1)))
    np.testing.assert_allclose(ahead, own - 3.0 * eta[:, None] * G, rtol=1e-12)
    same, _ = play(optimistic_delayed_dual_averaging(2.0, lookahead=0.0), G)
    np.testing.assert_allclose(same, own, rtol=1e-12)
