"""Shared RMSProp: that of one worker, and one second moment for all of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit.parallel import arrival_schedule, shared_rmsprop, simulate_events, start_simulation


def test_one_worker_is_rmsprop_with_eps_under_the_root(x64: None) -> None:
    g = np.random.default_rng(0).standard_normal((6, 3))
    tx = shared_rmsprop(0.01)

    def phase(x: Any, own: Any, g: Any, steps: Any) -> Any:
        return g, own

    run = start_simulation(jnp.zeros(3), tx, 1)
    _, path = simulate_events(arrival_schedule([1.0], 5, 6), phase, tx, run, data=jnp.asarray(g), record=lambda x: x)
    peer = optax.rmsprop(0.01, decay=0.99, eps=0.1, eps_in_sqrt=True)
    x = jnp.zeros(3)
    state, update = peer.init(x), jax.jit(peer.update)
    for t in range(6):
        u, state = update(jnp.asarray(g[t]), state)
        x = x + u
        np.testing.assert_allclose(path[t], x, rtol=1e-12)


def test_workers_share_the_second_moment(x64: None) -> None:
    """The first gradient of worker 1 is divided by what worker 0 has left."""
    tx = shared_rmsprop(1.0, decay=0.75, eps=0.0)
    run = start_simulation(jnp.zeros(()), tx, 2)
    data = jnp.array([4.0, 1.0])
    _, path = simulate_events(
        arrival_schedule([1.0, 1.5], 1, 2), lambda x, own, g, k: (g, own), tx, run, data=data, record=lambda x: x
    )
    np.testing.assert_allclose(np.diff(path), [-1 / np.sqrt(0.75 * 4 + 0.25)], rtol=1e-12)
