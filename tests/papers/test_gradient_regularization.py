"""Gradient regularization by finite differences (Karakida et al., 2022)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.gradients import gradient_regularization, sam
from gradkit.losses import flooding

X = {"a": np.array([0.3, -1.2]), "b": np.array(0.7)}
# A dozen operations in float64.
F64 = 1e-12


def loss(p):
    return jnp.sum(jnp.sin(p["a"]) * p["b"]) + p["b"] ** 4


def close(a, b, rtol=F64):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol), a, b)


def x():
    return jax.tree.map(jnp.asarray, X)


def test_double_backward_is_the_derivative_of_the_penalised_loss(x64):
    gamma = 0.4
    want = jax.grad(lambda p: loss(p) + gamma / 2 * sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(loss)(p))))
    value, got = gradient_regularization(loss, gamma, 1.0, "double_backward")(x())
    close(got, want(x()))
    np.testing.assert_allclose(value, loss(x()), rtol=F64)


@pytest.mark.parametrize("scheme", ["forward", "backward"])
def test_differences_come_to_it_in_the_first_order_of_eps(scheme, x64):
    """The error at eps = 1e-4 is ten times that at 1e-5, to the second order, a few 1e-4."""
    exact = gradient_regularization(loss, 0.4, 1.0, "double_backward")(x())[1]["b"]
    far, near = (gradient_regularization(loss, 0.4, eps, scheme)(x())[1]["b"] - exact for eps in (1e-4, 1e-5))
    np.testing.assert_allclose(far / near, 10, rtol=1e-2)


def test_with_gamma_equal_to_eps_it_is_sam_without_normalization(x64):
    """And with both rho / |g| it is SAM."""
    g = jax.grad(loss)(x())
    eps = 0.3
    want = jax.grad(loss)(jax.tree.map(lambda x, g: x + eps * g, x(), g))
    close(gradient_regularization(loss, eps, eps)(x())[1], want)
    norm = float(np.sqrt(sum(np.sum(np.asarray(v) ** 2) for v in jax.tree.leaves(g))))
    close(gradient_regularization(loss, 0.05 / norm, 0.05 / norm)(x())[1], sam(loss, 0.05)(x())[1], 1e-10)  # its 1e-12


def test_two_steps_of_flooding_across_the_level_are_a_backward_difference(x64):
    """Down, then up: x_2 - x_0 = -h^2 r with eps = h, exactly."""
    h = 0.05
    above = lambda p: loss(p) + 1  # noqa: E731
    flooded = flooding(above, float(above(x())) - 1e-3)
    first = jax.tree.map(lambda x, g: x - h * g, x(), jax.grad(flooded)(x()))
    second = jax.tree.map(lambda x, g: x - h * g, first, jax.grad(flooded)(first))
    g = jax.grad(loss)(x())
    r = jax.tree.map(lambda t, g: t - g, gradient_regularization(loss, 1.0, h, "backward")(x())[1], g)
    jax.tree.map(lambda a, b, r: np.testing.assert_allclose(a - b, -(h**2) * r, rtol=1e-9, atol=1e-12), second, x(), r)
