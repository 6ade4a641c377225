"""Zeroth-order optimizers: reductions to the optimizers they are made of, and the largest stable learning rate."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk

SLOPES = np.array([1.0, -3.0, 0.5])


def loss(x: Any) -> jax.Array:
    return jnp.sum(x * jnp.asarray(SLOPES, x.dtype)) + jnp.sum(x**2)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("zo_sgd", optax.sgd(0.1)),
        ("zo_adam", optax.adam(0.1)),
        ("zo_adamm", optax.amsgrad(0.1)),
    ],
)
def test_is_its_optimizer_on_the_estimate(name: str, reference: Any, x64: None) -> None:
    method, source = getattr(gk.gradients, name)(loss, 0.1), gk.gradients.zeroth_order_gradient(loss)
    x = y = jnp.asarray(SLOPES)
    state, other = method.init(x), reference.init(y)
    update, estimate, step = jax.jit(method.update), jax.jit(source), jax.jit(reference.update)
    for key in range(4):
        _, u, state = update(state, x, key=jax.random.key(key))
        with jax.numpy_dtype_promotion("standard"):  # optax promotes implicitly
            v, other = step(estimate(y, key=jax.random.key(key))[1], other, y)
        x, y = x + u, y + v
    np.testing.assert_allclose(x, y, rtol=1e-10)  # 2^-53 over epsilon = 1e-3


def test_stable_in_mean_square_below_two_over_d_plus_two() -> None:
    """On |x|^2 / 2 the mean of |x|^2 changes by the factor 1 - 2 eta + eta^2 (d + 2): at 1.5 / (d + 2) it falls to
    (d + 1.25) / (d + 2), at 2.5 / (d + 2) it rises. Gradient descent is stable below 2."""
    d = 6
    fn = gk.gradients.zeroth_order_gradient(lambda x: jnp.sum(x**2) / 2, epsilon=0.5)
    x = jnp.ones(d)
    g = np.asarray(jax.jit(jax.vmap(lambda k: fn(x, key=k)[1]))(jax.random.split(jax.random.key(1), 16384)), np.float64)
    for share in (1.5, 2.5):
        eta = share / (d + 2)
        factor = ((1 - eta * g) ** 2).sum(1).mean() / d
        # The deviation of one |x - eta g|^2 / d is below 3 eta^2 d: 4 deviations of the mean of 16384.
        np.testing.assert_allclose(factor, 1 - 2 * eta + eta**2 * (d + 2), atol=4 * 3 * eta**2 * d / 128)
        assert (factor < 1) == (share < 2)


def test_the_conservative_loss_never_rises() -> None:
    method, x = gk.gradients.zo_conservative(loss, 0.6), jnp.asarray(SLOPES, jnp.float32)
    state, update, kept, before = method.init(x), jax.jit(method.update), set(), float(loss(x))
    for key in range(24):
        _, u, state = update(state, x, key=jax.random.key(key))
        x = optax.apply_updates(x, u)
        now = float(loss(x))
        # The loss of x + u is compiled with the step or apart: the roundings of float32 at this size.
        assert now <= before + 1e-5
        kept.add(float(state.metrics["kept"]))
        before = now
    assert {0.0, 1.0} <= kept


def test_momentum_is_that_of_the_heavy_ball() -> None:
    """The same direction twice on a linear loss: 1, then 1 + 0.6 of the first step."""
    method, x = gk.gradients.zo_sgd(lambda x: 2.0 * x, 0.5, momentum=0.6, epsilon=0.5), jnp.array(0.0)
    state = method.init(x)
    for want in (-1.0, -1.6):
        _, u, state = method.update(state, x, direction=jnp.ones(1))
        np.testing.assert_allclose(u, want, rtol=1e-6)
