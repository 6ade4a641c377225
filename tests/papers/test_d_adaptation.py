"""D-Adaptation (Defazio, Mishchenko, 2023)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.by_numpy import by_numpy
from tests.papers.replay import assert_equal, descend, normal, updates

METHODS: dict[str, Any] = {"adam": gk.dadapt_adam, "sgd": gk.dadapt_sgd, "lion": gk.dadapt_lion}


def run(tx: optax.GradientTransformation, x: Any, gradient: Any, steps: int) -> tuple[Any, np.ndarray]:
    """The last parameters, and d after every step."""
    state, update, found = tx.init(x), by_numpy(tx.update), []
    for t in range(steps):
        u, state = update(gradient(x, t), state, x)
        x = optax.apply_updates(x, u)
        found.append(float(gk.diagnostics.metrics(state)["d"]))
    return x, np.array(found)


def test_sgd_in_numpy_with_momentum_and_decay(x64: None) -> None:
    """The norm of the first gradient contains the decay, which the official code forgets."""
    x, centre, wd, momentum = np.asarray(normal(0, 6)), np.asarray(normal(1, 6)), 0.2, 0.6
    tx = gk.dadapt_sgd(0.8, momentum=momentum, weight_decay=wd, d0=0.05)
    got, found = run(tx, jnp.asarray(x), lambda x, t: x - centre, 12)
    start, d, r, s, first = x, 0.05, 0.0, np.zeros(6), 0.0
    for t in range(12):
        g = x - centre + wd * x
        first = np.linalg.norm(g) if t == 0 else first
        by = d * 0.8 / first
        r, s = r + by * g @ s, s + by * g
        d = max(d, 2 * r / np.linalg.norm(s))
        x = momentum * x + (1 - momentum) * (start - s)
    assert_equal(got, x)
    np.testing.assert_allclose(found[-1], d, rtol=1e-12)
    assert d > 0.05


def test_adam_in_numpy_with_bias_correction_growth_and_decay(x64: None) -> None:
    """eps is large enough to see; a limit of the growth that is reached."""
    x, centre, b1, b2, eps, wd = np.asarray(normal(0, 6)), np.asarray(normal(1, 6)), 0.8, 0.95, 0.1, 0.1
    tx = gk.dadapt_adam(b1=b1, b2=b2, eps=eps, weight_decay=wd, bias_correction=True, d0=0.01, growth_rate=1.1)
    got, found = run(tx, jnp.asarray(x), lambda x, t: x - centre, 12)
    d, r, q, free = 0.01, 0.0, b2**0.5, False
    m = v = s = np.zeros(6)
    for t in range(1, 13):
        g = x - centre
        eta = d * np.sqrt(1 - b2**t) / (1 - b1**t)
        p = eta * (g * s / (np.sqrt(v) + eps)).sum()
        m, v, s = b1 * m + (1 - b1) * eta * g, b2 * v + (1 - b2) * g**2, q * s + (1 - q) * eta * g
        r = q * r + (1 - q) * p
        estimate = r / ((1 - q) * np.abs(s).sum())
        free |= estimate > 1.1 * d
        d = max(d, min(estimate, 1.1 * d))
        x = x - eta * wd * x - m / (np.sqrt(v) + eps)
    assert_equal(got, x)
    np.testing.assert_allclose(found[-1], d, rtol=1e-12)
    assert free


def test_lion_in_numpy_with_decay(x64: None) -> None:
    x, centre, b1, b2, wd = np.asarray(normal(0, 6)), np.asarray(normal(1, 6)), 0.8, 0.95, 0.1
    tx = gk.dadapt_lion(b1=b1, b2=b2, weight_decay=wd, d0=0.01)
    got, found = run(tx, jnp.asarray(x), lambda x, t: x - centre, 12)
    d, r, q, m, s = 0.01, 0.0, b2**0.5, np.zeros(6), np.zeros(6)
    for _ in range(12):
        g, eta = x - centre, d
        u = np.sign(b1 * m + (1 - b1) * g)
        p = eta * u @ s
        x = (1 - eta * wd) * x - eta * u
        m, s, r = b2 * m + (1 - b2) * eta * g, q * s + (1 - q) * eta * u, q * r + (1 - q) * p
        d = max(d, r / ((1 - q) * np.abs(s).sum()))
    assert_equal(got, x)
    np.testing.assert_allclose(found[-1], d, rtol=1e-12)
    assert d > 0.01


@pytest.mark.parametrize("name", METHODS)
def test_the_trajectory_does_not_know_the_scale_of_the_loss(name: str, x64: None) -> None:
    x, curvature = normal(0, 5), jnp.linspace(0.1, 3.0, 5)
    own = {"eps": 0.0} if name == "adam" else {}

    def end(scale: float) -> Any:
        return descend(METHODS[name](d0=1e-3, **own), x, lambda x: scale * curvature * x, 15)

    # A power of two would give the same bits; of 1000 the roundings double in every step.
    assert_equal(end(1.0), end(1000.0), rtol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_the_estimate_never_falls_also_with_noise(name: str, x64: None) -> None:
    x = normal(0, 6)
    _, d = run(METHODS[name](d0=1e-3), x, lambda x, t: x + 0.5 * normal(t + 1, 6), 40)
    assert (np.diff(d) >= 0).all() and d[-1] > 1e-3


def test_the_estimate_of_sgd_is_no_more_than_the_distance(x64: None) -> None:
    """On a convex loss, |A (x - c)|_1, with exact gradients: Theorem 1."""
    A, centre, x = normal(0, 8, 4), normal(1, 4), jnp.zeros(4)
    _, d = run(gk.dadapt_sgd(d0=1e-6), x, lambda x, t: A.T @ jnp.sign(A @ (x - centre)), 200)
    distance = float(jnp.linalg.norm(centre))
    assert d[-1] <= distance * (1 + 1e-12)
    assert d[-1] > distance / 20


@pytest.mark.parametrize("name", METHODS)
def test_a_rate_of_zero_and_gradients_of_zeros_change_nothing(name: str, x64: None) -> None:
    """`optax.contrib.dadapt_adamw` is NaN for ever after a rate of 0."""
    x, grads = normal(0, 4), [normal(t, 4) for t in range(1, 5)]
    method = METHODS[name]
    plain = updates(method(d0=0.01), x, grads)
    got = updates(method(d0=0.01), x, [0 * x, *grads])
    assert_equal(got[0], 0 * x, rtol=0, atol=0)
    assert_equal(got[1:], plain)
    late = updates(method(optax.join_schedules([lambda t: 0.0, lambda t: 1.0], [2]), d0=0.01), x, [*grads[2:], *grads])
    assert_equal(late[:2], [0 * x] * 2, rtol=0, atol=0)
    assert_equal(late[2:], plain)
