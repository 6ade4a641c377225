"""AdaHessian: Newton's method where the curvature is known, momentum where it has no power; its own estimate."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_without_power_it_is_momentum(x64: None) -> None:
    """k = 0: the corrected mean of the gradients over 1 + eps."""
    g = [normal(i, 4) for i in range(3)]
    tx = gk.scale_by_adahessian(b1=0.8, eps=0.25, hessian_power=0.0)
    state, m = tx.init(g[0]), jnp.zeros(4)
    for t, x in enumerate(g, 1):
        d, state = tx.update(x, state, curvature=normal(9, 4))
        m = 0.8 * m + 0.2 * x
        assert_equal(d, m / (1 - 0.8**t) / 1.25)


def test_without_means_it_is_newtons_method(x64: None) -> None:
    """Exact diagonal curvature, b1 = b2 = 0, k = 1, eps = 0: the step is g / |h|, and solves a quadratic at once."""
    a, x = jnp.array([0.5, 3.0, -2.0]), normal(0, 3)
    tx = gk.adahessian(1.0, b1=0.0, b2=0.0, eps=0.0)
    u, _ = tx.update(a * x, tx.init(x), x, curvature=a)
    assert_equal(u, -a * x / jnp.abs(a))
    assert_equal((x + u)[:2], jnp.zeros(2))


def test_it_makes_its_own_curvature(key: jax.Array, x64: None) -> None:
    """On a separable loss Hutchinson's estimate is exact: the run is that with the curvature given."""
    x = {"bias": normal(0, 3), "kernel": normal(1, 4, 3)}
    a = jax.tree.map(lambda x: 0.5 + jnp.abs(x), x)
    tx = gk.adahessian(0.1, weight_decay=0.01, key=key)
    given = made = x
    states = tx.init(x), tx.init(x)
    for _ in range(3):
        grad = jax.tree.map(jnp.multiply, a, given)
        u, first = tx.update(grad, states[0], given, curvature=a)
        grad = jax.tree.map(jnp.multiply, a, made)
        v, second = tx.update(grad, states[1], made, hvp_fn=lambda z: jax.tree.map(jnp.multiply, a, z))
        given, made, states = optax.apply_updates(given, u), optax.apply_updates(made, v), (first, second)
    assert_equal(made, given)


def test_the_window_of_a_convolution_is_averaged(key: jax.Array, x64: None) -> None:
    x = {"Conv_0": {"kernel": normal(1, 2, 2, 3, 4)}}
    a = jax.tree.map(lambda x: 0.5 + jnp.abs(x), x)
    tx = gk.adahessian(1.0, b1=0.0, b2=0.0, eps=0.0, key=key)
    u: Any = tx.update(a, tx.init(x), x, hvp_fn=lambda z: jax.tree.map(jnp.multiply, a, z))[0]
    kernel = a["Conv_0"]["kernel"]
    assert_equal(u["Conv_0"]["kernel"], -kernel / kernel.mean((0, 1), keepdims=True))


def test_a_lazy_curvature_serves_several_steps(key: jax.Array, x64: None) -> None:
    """With b2 = 0 the direction of every step in between is over the last estimate."""
    tx, x = gk.adahessian(1.0, b1=0.0, b2=0.0, eps=0.0, update_interval=2, key=key), jnp.ones(2)
    state, out = tx.init(x), []
    for t in range(3):
        u, state = tx.update(x, state, x, hvp_fn=lambda z, t=t: (t + 1.0) * z)
        out.append(-1 / float(u[0]))
    assert out == pytest.approx([1.0, 1.0, 3.0], rel=1e-12)


def test_decay_is_decoupled(x64: None) -> None:
    x = normal(0, 3)
    tx = gk.adahessian(0.1, weight_decay=0.5)
    u, _ = tx.update(jnp.zeros(3), tx.init(x), x, curvature=jnp.ones(3))
    assert_equal(u, -0.05 * x)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"hessian_power must be in \[0, 1\]"):
        gk.adahessian(hessian_power=1.5)
    with pytest.raises(ValueError, match="adahessian needs the extra argument curvature"):
        updates(gk.adahessian(), jnp.ones(2), [jnp.ones(2)])
