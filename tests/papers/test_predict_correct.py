"""Prediction and correction of a state that drifts (Su, Zou, Wu, 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_the_whole_weight_on_the_measurement_is_the_measurement(x64: None) -> None:
    zs = [normal(i, 3, 4) for i in range(4)]
    assert_equal(updates(gk.predict_correct(1.0), 0 * zs[0], zs), zs, rtol=0, atol=0)


def test_a_linear_drift_is_predicted_exactly(x64: None) -> None:
    """With unequal times between measurements, and no weight on the measurements from the third on."""
    start, drift = np.asarray(normal(0, 5)), np.asarray(normal(1, 5))
    tx = gk.predict_correct(0.0)
    state, t = tx.init(jnp.zeros(5)), 0.0
    for i, dt in enumerate((1.0, 0.5, 2.0, 1.25)):
        t += dt
        measured = start + t * drift + (100.0 if i >= 2 else 0.0)
        s, state = tx.update(jnp.asarray(measured), state, elapsed=dt)
        assert_equal(s, start + t * drift if i >= 2 else measured, rtol=1e-12)


def test_the_definition(x64: None) -> None:
    """The mean of all rates of the corrected states, in NumPy; time that does not pass adds no rate."""
    zs, times, gamma = [np.asarray(normal(i, 3)) for i in range(6)], (1.0, 2.0, 0.5, 0.0, 1.0, 3.0), 0.3
    tx = gk.predict_correct(gamma)
    state, rates, s = tx.init(jnp.zeros(3)), [], np.zeros(3)
    for i, (z, dt) in enumerate(zip(zs, times, strict=True)):
        mean = np.mean(rates, axis=0) if rates else None
        new = z if mean is None else gamma * z + (1 - gamma) * (s + dt * mean)
        if i and dt:
            rates.append((new - s) / dt)
        s = new
        got, state = tx.update(jnp.asarray(z), state, elapsed=dt)
        assert_equal(got, s, rtol=1e-12)
    assert int(state.count) == 5


def test_every_node_has_a_time_of_its_own_and_the_weight_is_trained(x64: None) -> None:
    """Under `vmap`; the derivative by gamma is that of the mixture alone: z minus the prediction."""
    dts, zs = np.array([1.0, 2.0]), np.asarray(normal(0, 3, 2, 4))

    def last(gamma: jax.Array) -> Any:
        tx = gk.predict_correct(gamma)
        s = jnp.zeros((2, 4))
        state = jax.vmap(tx.init)(s)
        for z in zs:
            s, state = jax.vmap(lambda z, state, dt: tx.update(z, state, elapsed=dt))(jnp.asarray(z), state, dts)
        return s

    predicted = zs[1] + dts[:, None] * ((zs[1] - zs[0]) / dts[:, None])
    value, slope = jax.jit(lambda g: jax.jvp(last, (g,), (jnp.ones_like(g),)))(jnp.asarray(0.25))
    assert_equal(value, 0.25 * zs[2] + 0.75 * predicted, rtol=1e-12)
    assert_equal(slope, zs[2] - predicted, rtol=1e-12)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\]"):
        gk.predict_correct(1.5)
    tx = gk.predict_correct(0.5)
    with pytest.raises(ValueError, match="elapsed must be one number"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), elapsed=jnp.ones(2))
