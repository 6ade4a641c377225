"""Descent in the induced metric (Harvey, 2025)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def gradients(n: int = 5) -> list:
    return [{"a": normal(i, 3), "b": normal(9 + i, 2, 2)} for i in range(n)]


@pytest.mark.parametrize("kind", ["loss", "log", "rms"])
def test_equations(kind: str, x64: None) -> None:
    mu, beta, xi, b2, eps, loss = 0.7, 0.6, 0.3, 0.8, 1e-2, 2.5
    gs = gradients()
    flat = lambda g: np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)])  # noqa: E731
    tx = gk.scale_by_induced_metric(kind=kind, momentum=mu, beta=beta, xi=xi, b2=b2, eps=eps)
    state, m, v, k = tx.init(gs[0]), np.zeros(7), np.zeros(7), 0.0
    for t, g in enumerate(gs, 1):
        u, state = tx.update(g, state, value=loss)
        g = flat(g)
        m, v = mu * m + (1 - mu) * g, b2 * v + (1 - b2) * g**2
        d = np.sqrt(v / (1 - b2**t)) + eps if kind == "rms" else 1.0
        k = beta * k + (1 - beta) * xi * np.sum(g**2 / d)
        mean = k / (1 - beta**t)
        s = loss / (loss**2 + mean) if kind == "log" else 1 / (1 + mean)
        assert_equal(flat(u), s * m / (1 - mu**t) / d)


def test_without_the_metric(x64: None) -> None:
    """xi = 0: momentum with a debiased mean, Adam, and descent on ln L."""
    gs = gradients()
    debiased = optax.chain(optax.ema(0.9), optax.scale(-0.1))
    with jax.numpy_dtype_promotion("standard"):  # optax promotes its counters implicitly
        want = updates(debiased, gs[0], gs)
    # optax takes 1 - b^t in float32, since its counter is int32.
    assert_equal(updates(gk.induced_metric_sgd(0.1, xi=0.0), gs[0], gs), want, rtol=1e-6)
    adam = gk.adam(0.1, b1=0.9, b2=0.99)
    assert_equal(updates(gk.induced_metric_rms(0.1, xi=0.0), gs[0], gs), updates(adam, gs[0], gs))

    x, loss = normal(0, 4), lambda x: 3 + jnp.sum(x**2)
    tx = gk.induced_metric_log(0.1, xi=0.0, momentum=0.0)
    u, _ = tx.update(jax.grad(loss)(x), tx.init(x), x, value=loss(x))
    assert_equal(u, -0.1 * jax.grad(lambda x: jnp.log(loss(x)))(x))


def test_a_step_is_never_longer_than_half_over_the_root_of_xi(x64: None) -> None:
    """Without means it is rate |g| / (1 + xi |g|^2), longest at |g| = 1 / sqrt(xi)."""
    g, xi = normal(0, 6) / jnp.linalg.norm(normal(0, 6)), 4.0
    tx = gk.induced_metric_sgd(1.0, xi=xi, beta=0.0, momentum=0.0)
    norms = np.geomspace(1e-2, 1e2, 41)
    lengths = np.array([float(jnp.linalg.norm(updates(tx, g, [r * g])[0])) for r in norms])
    np.testing.assert_allclose(lengths, norms / (1 + xi * norms**2), rtol=1e-12)
    assert_equal(jnp.linalg.norm(updates(tx, g, [0.5 * g])[0]), 0.25)
    assert lengths.max() <= 0.25


def test_decay_is_not_scaled_by_the_metric(x64: None) -> None:
    x, g = normal(0, 6), 100 * normal(1, 6)
    plain, decayed = (updates(gk.induced_metric_sgd(0.1, weight_decay=wd), x, [g])[0] for wd in (0.0, 0.5))
    assert_equal(decayed - plain, -0.05 * x)


def test_the_logarithm_needs_a_positive_loss() -> None:
    x = jnp.ones(2)
    tx = gk.induced_metric_log(0.1)
    with pytest.raises(ValueError, match="needs the extra argument value"):
        tx.update(x, tx.init(x), x)
    with pytest.raises(ValueError, match=r"value must be in \(0, inf\)"):
        tx.update(x, tx.init(x), x, value=0.0)
    with pytest.raises(ValueError, match="kind must be one of 'loss', 'log', 'rms'"):
        gk.scale_by_induced_metric(kind="rmsprop")
