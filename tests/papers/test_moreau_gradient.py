"""The gradient of the Moreau envelope (Davis, Drusvyatskiy, 2018)."""

import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.diagnostics import moreau_gradient


def test_it_is_the_derivative_of_the_envelope(x64):
    """Of f = |x| + x^2 / 2, by central differences of the envelope, found on a fine grid of points."""
    lam, grid = 0.7, np.linspace(-3, 3, 600_001)

    def envelope(x):
        return np.min(np.abs(grid) + grid**2 / 2 + (grid - x) ** 2 / (2 * lam))

    def prox(x, lam):
        return jnp.sign(x) * jnp.maximum(jnp.abs(x) - lam, 0) / (1 + lam)

    for x in (1.8, -0.4):
        # The grid is 1e-5 apart, so an envelope is right to 1e-10, and their difference over 0.02 to 1e-8.
        want = (envelope(x + 0.01) - envelope(x - 0.01)) / 0.02
        np.testing.assert_allclose(moreau_gradient(prox, jnp.array([x]), lam), [want], rtol=1e-6)


def test_another_tree_is_refused():
    with pytest.raises(ValueError, match="moreau_gradient"):
        moreau_gradient(lambda x, lam: {"v": x["w"]}, {"w": jnp.ones(2)}, 1.0)
    with pytest.raises(ValueError, match="lam must be in"):
        moreau_gradient(lambda x, lam: x, jnp.ones(2), 0.0)
