"""EMA-Nesterov (Yau et al., 2026)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from tests.by_numpy import by_numpy
from tests.papers.replay import assert_equal, descend, normal

CENTRE = np.random.default_rng(7).standard_normal(5)


def field(x: Any) -> Any:
    return x - CENTRE + 0.3 * x**3


def test_without_a_look_ahead_it_is_the_base(x64: None) -> None:
    x = normal(0, 5)
    for own in ({"beta": 0.0}, {"beta": 2.0, "start": 100}, {"beta": 2.0, "stop": 0}):
        got = descend(gk.ema_nesterov(gk.adam(0.1), gamma=0.5, **own), x, field, 6)
        assert_equal(got, descend(gk.adam(0.1), x, field, 6))


def test_without_an_average_and_with_sgd_it_is_nesterovs_method(x64: None) -> None:
    x = normal(0, 5)
    got = descend(gk.ema_nesterov(optax.sgd(0.1), beta=0.8, gamma=0.0), x, field, 10)
    assert_equal(got, descend(gk.sgd(0.1, momentum=0.8, nesterov=True), x, field, 10))


def test_the_sequences_in_numpy_with_a_schedule_and_decay_at_the_point_of_the_gradient(x64: None) -> None:
    y, gamma, rate, wd = np.asarray(normal(0, 5)), 0.7, 0.1, 0.4
    betas = [2.0 * t if 2 <= t < 6 else 0.0 for t in range(10)]
    inner = optax.chain(gk.add_decayed_weights(wd), optax.sgd(rate))
    tx = gk.ema_nesterov(inner, beta=lambda t: 2.0 * t.astype(jnp.float64), gamma=gamma, start=2, stop=6)
    state, update, path = tx.init(jnp.asarray(y)), by_numpy(tx.update), jnp.asarray(y)
    x, m = y, np.zeros(5)
    for t in range(8):
        u, state = update(0.1 * jnp.asarray(field(np.asarray(path))), state, path)
        path = path + u
        new = y - rate * (0.1 * field(y) + wd * y)
        m, x = gamma * m + (1 - gamma) * (new - x), new
        y = x + betas[t + 1] * m
        assert_equal(path, y, rtol=1e-11)
        assert_equal(gk.eval_params(state, path), x, rtol=1e-11)


def test_the_average_of_a_steady_drift_is_the_drift(x64: None) -> None:
    """Steps of one length: without a look-ahead m converges to it as gamma^t."""
    tx, x = gk.ema_nesterov(optax.sgd(1.0), beta=0.0, gamma=0.5), jnp.zeros(2)
    state, drift = tx.init(x), np.array([0.3, -0.2])
    for _ in range(12):
        u, state = tx.update(-jnp.asarray(drift), state, x)
        x = x + u
    assert_equal(gk.find(state, "mu"), drift * (1 - 0.5**12))
