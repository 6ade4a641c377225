"""SAVIC: local SGD while nothing is scaled, and one preconditioner for all replicas, from their mean gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.parallel import local_sgd, savic, scale_by_synced_preconditioner, synchronize

W, N = 4, 3
G = np.random.default_rng(0).standard_normal((9, W, N))


def train(tx: Any, steps: int, **extra: Any) -> Any:
    """With gradients that do not depend on where replicas are."""
    x = jnp.ones((W, N))
    state = jax.vmap(tx.init)(x)

    def step(x: Any, state: Any, g: Any) -> Any:
        u, state = tx.update(g, state, x, **extra)
        return optax.apply_updates(x, u), state

    program, path = jax.jit(jax.vmap(step, axis_name="replica")), []
    for t in range(steps):
        x, state = program(x, state, jnp.asarray(G[t]))
        path.append(np.asarray(x))
    return np.stack(path), state


def test_unscaled_it_is_local_sgd(x64: None) -> None:
    """The first round; and all of them, where alpha is 1 and D smaller."""
    want, _ = train(local_sgd(0.1, sync_every=3), 9)
    np.testing.assert_allclose(train(savic(0.1, sync_every=3), 3)[0], want[:3], rtol=1e-13)
    path, _ = train(savic(0.1, sync_every=3, preconditioner="rmsprop", alpha=1.0), 9)
    np.testing.assert_allclose(path, want, rtol=1e-13)


@pytest.mark.parametrize("preconditioner", ["adam", "rmsprop"])
def test_the_equations(preconditioner: str, x64: None) -> None:
    b2, alpha, rate = 0.9, 0.05, 0.1
    path, state = train(savic(rate, sync_every=2, preconditioner=preconditioner, b2=b2, alpha=alpha), 9)
    x, D2, rounds = np.ones((W, N)), np.zeros(N), 0
    for t in range(9):
        x = x - rate * G[t] / (np.maximum(alpha, np.sqrt(D2)) if rounds else 1.0)
        if (t + 1) % 2 == 0:
            x = np.tile(x.mean(0), (W, 1))
            b = (b2 - b2 ** (rounds + 1)) / (1 - b2 ** (rounds + 1)) if preconditioner == "adam" else b2
            D2, rounds = b * D2 + (1 - b) * G[t].mean(0) ** 2, rounds + 1
        np.testing.assert_allclose(path[t], x, rtol=1e-12)
    np.testing.assert_allclose(state.D, np.tile(D2, (W, 1)), rtol=1e-12)


def test_every_step_a_round_is_rms_of_the_step_before(x64: None) -> None:
    """On the mean gradient: the D of optax.scale_by_rms, one step older."""
    path, _ = train(savic(0.1, sync_every=1, preconditioner="rmsprop", b2=0.8), 5)
    mean, peer = G.mean(1), optax.scale_by_rms(0.8, eps=0.0, initial_scale=0.0)
    state, nu = peer.init(jnp.zeros(N)), []
    for t in range(4):
        _, state = jax.jit(peer.update)(jnp.asarray(mean[t]), state)
        nu.append(np.asarray(state.nu))
    steps = np.diff(np.concatenate([np.ones((1, N)), path[:, 0]]), axis=0)
    np.testing.assert_allclose(steps[1:], -0.1 * mean[1:5] / np.sqrt(nu), rtol=1e-9)


def test_the_mean_of_squares_is_not_the_square_of_the_mean(x64: None) -> None:
    """What a preconditioner of each replica, averaged, would be."""
    _, state = train(savic(0.1, sync_every=1), 1)
    np.testing.assert_allclose(state.D[0], G[0].mean(0) ** 2, rtol=1e-12)
    assert (np.asarray(state.D[0]) < (G[0] ** 2).mean(0)).all()


def test_oasis_takes_curvature(x64: None) -> None:
    h = jnp.array([4.0, -9.0, 0.01])
    _, state = train(savic(0.1, sync_every=1, preconditioner="oasis", b2=0.5, alpha=0.1), 1, curvature=h)
    np.testing.assert_allclose(state.D, np.tile(h, (W, 1)))
    tx = savic(0.1, sync_every=1, preconditioner="oasis", alpha=0.1)
    x, own = jnp.ones(N), jax.tree.map(lambda v: v[0], state)
    u, _ = tx.update(jnp.ones(N), own, x, sync=False)
    np.testing.assert_allclose(np.asarray(u), -0.1 / np.array([4.0, 9.0, 0.1]), rtol=1e-12)
    with pytest.raises(ValueError, match=r"savic needs .*curvature"):
        tx.update(x, tx.init(x), x, sync=True)


def test_the_primitive_is_the_scaling_of_the_strategy(x64: None) -> None:
    """In local updates it makes SAVIC, where it is told the axis."""
    own = {"sync_every": 2, "b2": 0.9, "preconditioner": "rmsprop"}
    inner = optax.chain(scale_by_synced_preconditioner(axis_name="replica", **own), gk.sgd(0.1))
    path, _ = train(gk.parallel.local_updates(inner, sync_every=2), 7)
    np.testing.assert_allclose(path, train(savic(0.1, **own), 7)[0], rtol=1e-12)


def test_synchronize_leaves_the_preconditioner(x64: None) -> None:
    tx = savic(0.1, sync_every=2)
    path, state = train(tx, 3)
    x, after = jax.vmap(lambda x, s: synchronize(tx, x, s), axis_name="replica")(jnp.asarray(path[-1]), state)
    np.testing.assert_allclose(x, np.tile(path[-1].mean(0), (W, 1)), rtol=1e-14)
    np.testing.assert_array_equal(after.D, state.D)
