"""ZeroFlow's history averages directions: the slope of today times that average has little of the gradient."""

import jax
import jax.numpy as jnp
import numpy as np

import gradkit as gk


def test_the_mean_after_the_first_step_is_one_minus_alpha_of_the_gradient() -> None:
    slope = jnp.array([1.0, -2.0])
    method = gk.gradients.zo_history(lambda x: jnp.sum(slope * x), 1.0, history_decay=0.75, epsilon=1.0)

    def second(key: jax.Array) -> jax.Array:
        first, then = jax.random.split(key)
        x = jnp.zeros(2)
        _, _, state = method.update(method.init(x), x, key=first)
        return method.update(state, x, key=then)[1]

    u = np.asarray(jax.jit(jax.vmap(second))(jax.random.split(jax.random.key(0), 8192)), np.float64)
    # An entry of c h has a deviation of at most |slope| sqrt(0.75^2 + 3 0.25^2) < 2: five of the mean of 8192.
    np.testing.assert_allclose(u.mean(0), -0.25 * np.asarray(slope), atol=5 * 2 / np.sqrt(8192))
