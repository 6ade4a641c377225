"""Delayed Nesterov and dynamic local steps: reductions, and the momentum that a full buffer has released."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.parallel import delayed_nesterov, dynamic_local_steps


def path(tx: Any, g: np.ndarray) -> np.ndarray:
    """Where the parameters are after each arrival."""
    x = jnp.zeros(g.shape[1], g.dtype)

    def step(carry: Any, g: Any) -> Any:
        x, state = carry
        u, state = tx.update(g, state, x)
        return (x + u, state), x + u

    return np.asarray(jax.jit(lambda x, g: jax.lax.scan(step, (x, tx.init(x)), g)[1])(x, jnp.asarray(g)))


def arrivals(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3))


@pytest.mark.parametrize("c", [0.0, 0.3, 1.0])
def test_a_buffer_of_one_is_nesterov(c: float, x64: None) -> None:
    g = arrivals(7)
    got = path(delayed_nesterov(0.1, momentum=0.8, buffer_size=1, activation=c), g)
    np.testing.assert_allclose(got, path(optax.sgd(0.1, 0.8, nesterov=True), g), rtol=1e-12)


def test_a_full_buffer_is_one_step_of_nesterov_with_the_mean(x64: None) -> None:
    g = arrivals(12)
    got = path(delayed_nesterov(0.1, momentum=0.8, buffer_size=4), g)[3::4]
    mean = g.reshape(3, 4, 3).mean(1)
    np.testing.assert_allclose(got, path(optax.sgd(0.1, 0.8, nesterov=True), mean), rtol=1e-12)


@pytest.mark.parametrize("c", [0.0, 0.1, 0.25])
def test_the_recursion(c: float, x64: None) -> None:
    g, N, beta = arrivals(9), 4, 0.9
    x, m, D, want = np.zeros(3), np.zeros(3), np.zeros(3), []
    for t in range(9):
        D = D + g[t]
        if (t + 1) % N == 0:
            m, D = beta * m + D / N, np.zeros(3)
            x = x - 0.5 * ((1 - c * N + c) * beta * m + g[t] / N)
        else:
            x = x - 0.5 * (c * beta * m + g[t] / N)
        want.append(x)
    np.testing.assert_allclose(path(delayed_nesterov(0.5, buffer_size=N, activation=c), g), want, rtol=1e-12)


@pytest.mark.parametrize("c", [0.0, 0.1, 0.25])
def test_a_buffer_releases_its_momentum_once(c: float, x64: None) -> None:
    """Without new gradients a round of four moves by c beta m three times and by the rest of beta (beta m) at last."""
    tx, beta = delayed_nesterov(1.0, momentum=0.5, buffer_size=4, activation=c), 0.5
    g = np.concatenate([np.ones((4, 1)), np.zeros((4, 1))])
    moved = np.diff(path(tx, g)[3:, 0])
    m = np.array([1.0, beta])
    want = -beta * np.array([c * m[0]] * 3 + [(1 - 3 * c) * m[1]])
    np.testing.assert_allclose(moved, want, rtol=1e-12)


def test_bad_activation() -> None:
    with pytest.raises(ValueError, match=r"activation must be in \[0, 1/buffer_size\], got 0.3 for 4"):
        delayed_nesterov(0.1, buffer_size=4, activation=0.3)
    delayed_nesterov(0.1, buffer_size=3, activation=1 / 3)


def test_dynamic_local_steps_equalise_the_rounds() -> None:
    seconds = np.array([0.58, 0.75, 1.51, 3.33])
    steps = dynamic_local_steps(seconds, 50)
    assert steps.tolist() == [50, 38, 19, 8]
    assert ((steps + 1) * seconds > 50 * seconds.min()).all() and (steps * seconds <= 50 * seconds.min() + 1e-9).all()
    assert dynamic_local_steps([0.1, 0.3, 1000.0], 30).tolist() == [30, 10, 1]


def test_with_dynamic_steps_no_worker_is_staler_than_the_others() -> None:
    """The paper's speeds: fixed steps leave one worker eleven versions behind, dynamic ones about W - 1."""
    seconds = [0.58, 0.75, 1.51, 3.33]
    fixed = gk.parallel.arrival_schedule(seconds, 48, 60)
    dynamic = gk.parallel.arrival_schedule(seconds, dynamic_local_steps(seconds, 48), 60)
    assert fixed.staleness.max() >= 10 and dynamic.staleness.max() <= 4
