"""Flooding as a loss (Ishida et al., 2020)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.losses import flooding


def test_descent_above_the_level_and_ascent_below(x64):
    loss = lambda x, scale: scale * jnp.sum(x**2)  # noqa: E731
    flooded = flooding(loss, 1.0)
    for x, sign in ((np.array([1.0, 1.0]), 1), (np.array([0.5, 0.5]), -1)):
        value, g = jax.value_and_grad(flooded)(jnp.asarray(x), 1.0)
        np.testing.assert_allclose(value, abs((x**2).sum() - 1) + 1)
        np.testing.assert_array_equal(g, sign * 2 * x)


def test_descent_ends_around_the_level(x64):
    """Within the change of the loss in one step of either side."""
    flooded = flooding(lambda x: (x**2, x), 1.0, has_aux=True)
    grad = jax.jit(jax.grad(flooded, has_aux=True))
    x = 3.0
    for _ in range(100):
        g, aux = grad(x)
        assert aux == x
        x = x - 0.01 * float(g)
    assert abs(x**2 - 1) < 0.06  # 2 x * 0.01 * 2 x at x = 1, with room for the second order


def test_a_negative_level_is_refused():
    with pytest.raises(ValueError, match="b must be in"):
        flooding(lambda x: x, -1.0)
