"""The pull towards the norm of Gaussian noise."""

import jax
import jax.numpy as jnp
import numpy as np

import gradkit as gk


def added(x: np.ndarray, **how: object) -> np.ndarray:
    tx = gk.add_norm_prior(0.5, **how)
    return np.asarray(tx.update(jnp.zeros_like(x), tx.init(x), jnp.asarray(x))[0])


def test_is_the_gradient_of_the_energy(x64: None) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3))

    def energy(x: jax.Array) -> jax.Array:
        square = jnp.sum(jnp.square(x))
        return square / 2 - (x.size - 1) / 2 * jnp.log(square)

    np.testing.assert_allclose(added(x), 0.5 * jax.grad(energy)(jnp.asarray(x)), rtol=1e-13)
    rows = np.stack([0.5 * jax.grad(energy)(jnp.asarray(row)) for row in x])
    np.testing.assert_allclose(added(x, batch_axes=1), rows, rtol=1e-13)


def test_is_zero_on_the_sphere_and_points_to_it(x64: None) -> None:
    """A gradient is uphill: outside it points outwards, inside inwards."""
    e = np.ones(5) / np.sqrt(5)
    np.testing.assert_allclose(added(2 * e), 0, atol=1e-15)
    assert (added(3 * e) > 0).all()
    assert (added(e) < 0).all()
    np.testing.assert_array_equal(added(0 * e), 0)


def test_the_norm_is_that_of_one_latent(x64: None) -> None:
    """The code takes the norm of the whole batch with the dimension of one latent."""
    x = np.random.default_rng(1).standard_normal((3, 4))
    np.testing.assert_allclose(added(x, batch_axes=1)[:1], added(x[:1], batch_axes=1), rtol=1e-14)
