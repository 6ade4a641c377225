"""Effective learning rates of scale-invariant weights (van Laarhoven, 2017)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.diagnostics import effective_learning_rate, settled_learning_rate
from tests.papers.replay import normal


def test_weights_times_c_with_a_rate_times_c_squared_go_the_same_way(x64: None) -> None:
    """SGD on a scale-invariant loss, without decay: equal effective rates are equal directions, in every step."""
    target = normal(1, 5)
    gradient = jax.jit(jax.grad(lambda w: jnp.sum((w / jnp.linalg.norm(w) - target) ** 2)))
    runs = []
    for c in (1.0, 3.0):
        w, eta, rows = c * np.asarray(normal(0, 5)), 0.1 * c**2, []
        for _ in range(4):
            rate = float(effective_learning_rate(jnp.asarray(w), eta)[""])
            rows.append([rate, *w / np.linalg.norm(w)])
            w = w - eta * np.asarray(gradient(w))
        runs.append(rows)
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-11)


def test_decay_settles_the_rate() -> None:
    """Noise of unit size across w, at eta lambda of 1e-3: within terms of that order, five times over."""
    rng, w, eta, decay = np.random.default_rng(0), np.ones(50), 0.5, 2e-3
    rates = []
    for step in range(6000):
        g = rng.standard_normal(50)
        g -= g @ w * w / (w @ w)
        w = (1 - eta * decay) * w - eta * g / np.linalg.norm(g) / np.linalg.norm(w)
        if step > 3000:
            rates.append(eta / (w @ w))
    np.testing.assert_allclose(np.mean(rates), settled_learning_rate(eta, decay, 1.0), rtol=5e-3)
    assert settled_learning_rate(0.2, 0.1, 3.0) == settled_learning_rate(0.1, 0.2, 3.0)


def test_rules_units_and_the_leaves_that_are_meant() -> None:
    w = {"kernel": np.array([[3.0, 0.0], [4.0, 2.0]], np.float32), "bias": np.ones(2, np.float32)}
    own = {"where": lambda name: name == "kernel"}
    assert effective_learning_rate(w, 1.0, per_unit=True, **own)["kernel"].tolist() == [np.float32(1 / 25), 1 / 4]
    assert effective_learning_rate(w, 1.0, per_unit=True, rule="adam", **own)["kernel"].tolist() == [
        np.float32(0.2),
        0.5,
    ]
    assert list(effective_learning_rate(w, 1.0, **own)) == ["kernel"]
    for name, bad in (("rule", "lion"), ("learning_rate", -1.0), ("per_unit", 1)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            effective_learning_rate(**{"params": w, "learning_rate": 1.0, name: bad})
