"""FedSpeed: local SGD in a limit, dual variables that add up to nothing, and the pull of FedProx."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.parallel import fedspeed, local_sgd, local_updates, prox_correction

W, N = 3, 4
A = 0.5 + np.random.default_rng(0).random((W, N))
C = np.random.default_rng(1).standard_normal((W, N))


def grad(x: Any, a: Any, c: Any) -> Any:
    """Of sum a (x - c)^2 / 2: workers that want different things."""
    return a * (x - c)


def train(tx: Any, steps: int, active: Any = None, workers: int = W) -> Any:
    x = jnp.ones((workers, N))
    state = jax.vmap(tx.init)(x)

    def step(x: Any, state: Any, a: Any, c: Any, there: Any) -> Any:
        own = {} if active is None else {"active": there}
        u, state = tx.update(grad(x, a, c), state, x, grad_fn=lambda x: grad(x, a, c), **own)
        return optax.apply_updates(x, u), state

    program, path = jax.jit(jax.vmap(step, axis_name="replica")), []
    for t in range(steps):
        there = jnp.ones(workers) if active is None else jnp.asarray(active[t])
        x, state = program(x, state, jnp.asarray(A[:workers]), jnp.asarray(C[:workers]), there)
        path.append(np.asarray(x))
    return np.stack(path), state


def test_without_pull_and_ascent_a_round_is_that_of_local_sgd_and_counts_twice(x64: None) -> None:
    path, _ = train(fedspeed(0.1, sync_every=3, prox=1e12, rho=0.0), 7)
    # The pull of 1e-12 acts seven times on numbers of size 1; l h is of size 0.3 and right to 1e-12 * 1e12 * 2^-53.
    np.testing.assert_allclose(path[:2], train(local_sgd(0.1, sync_every=3), 2)[0], rtol=1e-10)
    dual = fedspeed(0.1, sync_every=3, prox=1e12, rho=0.0)
    x, _ = train(dual, 3)
    ended = path[1] - 0.1 * grad(path[1], A, C)
    np.testing.assert_allclose(x[2], np.tile((2 * ended - 1.0).mean(0), (W, 1)), rtol=1e-9)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_equations(normalize: bool, x64: None) -> None:
    """Two rounds of two steps in NumPy."""
    lam, rho, mix, wd, rate = 2.0, 0.3, 0.7, 0.05, 0.1
    tx = fedspeed(rate, sync_every=2, prox=lam, rho=rho, mix=mix, weight_decay=wd, normalize=normalize)
    path, state = train(tx, 4)
    start, h = np.ones((W, N)), np.zeros((W, N))
    for r in range(2):
        x = start
        for _ in range(2):
            g1 = grad(x, A, C)
            size = np.linalg.norm(g1, axis=1, keepdims=True) + 1e-7 if normalize else 1.0
            g = (1 - mix) * g1 + mix * grad(x + rho * g1 / size, A, C)
            x = x - rate * (g - h + wd * x + (x - start) / lam)
        h = h - (x - start) / lam
        start = np.tile((x - lam * h).mean(0), (W, 1))
        np.testing.assert_allclose(path[2 * r + 1], start, rtol=1e-12)
    np.testing.assert_allclose(state.dual, h, rtol=1e-11)


def test_duals_are_the_gradients_of_the_workers_where_it_rests(x64: None) -> None:
    """Their sum is that of the gradients at the minimum of the mean loss, 0, although no worker's own is."""
    tx = fedspeed(0.1, sync_every=20, prox=1.0, rho=0.0)
    path, state = train(tx, 2000)
    best = (A * C).sum(0) / A.sum(0)
    np.testing.assert_allclose(path[-1][0], best, atol=1e-8)
    np.testing.assert_allclose(state.dual, grad(best, A, C), atol=1e-7)
    assert np.abs(np.asarray(state.dual)).max() > 0.3


def test_one_worker_takes_its_dual_off(x64: None) -> None:
    path, state = train(fedspeed(0.1, sync_every=1, prox=4.0, rho=0.0), 1, workers=1)
    moved = 1.0 - 0.1 * grad(1.0, A[:1], C[:1])
    np.testing.assert_allclose(path[0], moved - 4.0 * np.asarray(state.dual), rtol=1e-13)
    np.testing.assert_allclose(state.dual, -(moved - 1.0) / 4.0, rtol=1e-13)


def test_absent_workers_keep_their_duals_and_leave_no_trace(x64: None) -> None:
    tx = fedspeed(0.1, sync_every=2, prox=2.0, rho=0.0)
    active = np.repeat([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], 2, axis=0)
    path, state = train(tx, 6, active)
    before, first = train(tx, 2)
    np.testing.assert_array_equal(state.dual[1], first.dual[1])
    assert np.abs(np.asarray(state.dual[0] - first.dual[0])).max() > 1e-3
    start, h = before[1][0], np.asarray(first.dual)
    x = np.tile(start, (W, 1))
    for _ in range(2):
        x = x - 0.1 * (grad(x, A, C) - h + (x - start) / 2.0)
    h = np.where(active[2][:, None] > 0, h - (x - start) / 2.0, h)
    want = x[[0, 2]].mean(0) - 2.0 * h.mean(0)
    np.testing.assert_allclose(path[3], np.tile(want, (W, 1)), rtol=1e-12)
    # Nobody took part in the third round.
    np.testing.assert_allclose(path[5], path[3], rtol=1e-14)


def test_the_corrected_gradient_is_clipped(x64: None) -> None:
    path, _ = train(fedspeed(0.1, sync_every=9, prox=1e12, rho=0.0, max_norm=0.2), 1)
    np.testing.assert_allclose(np.linalg.norm(path[0] - 1.0, axis=1), 0.1 * 0.2, rtol=1e-5)


def test_grad_fn_is_asked_for() -> None:
    tx, x = fedspeed(0.1, sync_every=3), jnp.ones(N)
    with pytest.raises(ValueError, match=r"fedspeed needs .*grad_fn"):
        tx.update(x, tx.init(x), x, sync=False)
    fedspeed(0.1, sync_every=3, mix=0.0).update(x, tx.init(x), x, sync=False)
    with pytest.raises(ValueError, match="prox must be"):
        fedspeed(0.1, prox=0.0)


def test_the_pull_of_fedprox(x64: None) -> None:
    """In front of the optimizer of local updates: to where the round started, which moves on with the rounds."""
    lam = 2.0
    inner = optax.chain(prox_correction(prox=lam, sync_every=3), gk.sgd(0.1))
    path, _ = train(local_updates(inner, sync_every=3), 7)
    x = start = np.ones((W, N))
    for t in range(7):
        x = x - 0.1 * (grad(x, A, C) + (x - start) / lam)
        if (t + 1) % 3 == 0:
            x = start = np.tile(x.mean(0), (W, 1))
        np.testing.assert_allclose(path[t], x, rtol=1e-12)
