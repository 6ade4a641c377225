"""The noise of Langevin dynamics as a link (Welling and Teh, 2011); its law is in the test of `sgld`."""

import jax
import jax.numpy as jnp
import numpy as np

import gradkit as gk


def test_any_method_in_front_keeps_its_step() -> None:
    """What is added depends on the key and the rate alone, so a preconditioner in front does not change it."""
    x, g = jnp.arange(1.0, 5.0), jnp.array([1.0, -2.0, 0.5, 3.0])
    tx = gk.add_langevin_noise(0.1, key=2)
    noise = tx.update(jnp.zeros(4), tx.init(x), x)[0]
    adam = gk.adam(0.1).update(g, gk.adam(0.1).init(x), x)[0]
    # One rounding of a sum of numbers below 2.
    np.testing.assert_allclose(
        np.asarray(tx.update(adam, tx.init(x), x)[0]), np.asarray(adam) + noise, rtol=0, atol=2**-22
    )
    given = gk.add_langevin_noise(0.1)
    a, b = (given.update(jnp.zeros(4), given.init(x), x, key=jax.random.key(k))[0] for k in (1, 2))
    assert np.all(np.asarray(a) != b)
