"""Flooding in a chain (Ishida et al., 2020)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.losses import flooding
from gradkit.optimizers.filters.flood import flood


@pytest.mark.parametrize("size", [2.0, 0.5])
def test_it_is_the_gradient_of_the_flooded_loss(size, x64):
    loss = lambda x: jnp.sum(x**2)  # noqa: E731
    x, tx = size * jnp.array([0.6, 0.8]), flood(1.0)
    value, g = jax.value_and_grad(loss)(x)
    np.testing.assert_array_equal(tx.update(g, tx.init(x), x, value=value)[0], jax.grad(flooding(loss, 1.0))(x))


def test_the_loss_must_be_a_scalar():
    tx, g = flood(0.1), jnp.ones(2)
    with pytest.raises(ValueError, match="value"):
        tx.update(g, tx.init(g))
    with pytest.raises(ValueError, match="one number"):
        tx.update(g, tx.init(g), value=jnp.ones(3))
