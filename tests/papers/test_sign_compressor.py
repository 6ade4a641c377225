"""Signs with error feedback (Karimireddy et al., 2019)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import parallel


def test_the_sent_signs_have_the_mean_size_of_their_leaf() -> None:
    tx = parallel.sign_compressor()
    g = {"a": jnp.array([[1.0, -2.0, 0.0]]), "b": jnp.array([[-8.0]])}
    out, _ = jax.vmap(tx.update, axis_name="replica")(g, jax.vmap(tx.init)(g))
    np.testing.assert_array_equal(out["a"], [[1.0, -1.0, 1.0]])
    np.testing.assert_array_equal(out["b"], [[-8.0]])


def test_signs_alone_miss_the_minimum_and_with_feedback_they_reach_it(x64: None) -> None:
    """Two replicas whose gradients have means, but signs of which the mean has none: 3 and -1, twice."""

    def distance(exchange: optax.GradientTransformation) -> float:
        tx = optax.chain(exchange, optax.sgd(0.05))
        pull = jnp.array([[3.0, 0.1], [-1.0, -0.1]])  # the minimum of both is at (1, 0)
        x = jnp.zeros((2, 2))

        def step(carry: tuple, _: None) -> tuple:
            x, state = carry
            updates, state = jax.vmap(tx.update, axis_name="replica")(x - pull, state, x)
            return (x + updates, state), x

        _, xs = jax.jit(lambda c: jax.lax.scan(step, c, None, length=1200))((x, jax.vmap(tx.init)(x)))
        return float(jnp.abs(jnp.mean(xs[-400:, 0], axis=0) - jnp.array([1.0, 0.0])).max())

    assert distance(parallel.error_feedback(parallel.sign_compressor())) < 0.02
    assert distance(parallel.sign_compressor()) > 0.02
