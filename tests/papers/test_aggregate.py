"""An aggregator of one's own: as the package's in a chain, and of gradients that are computed when asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.aggregation import aggregate


def test_a_function_with_a_state_in_a_loop() -> None:
    """The mean, weighted by the losses of the step; its state counts."""

    def update(g: jax.Array, count: jax.Array, *, losses: jax.Array, **extra: object) -> tuple:
        del extra
        return jnp.sum(losses[:, None] * g, axis=0), count + 1

    tx = optax.chain(aggregate(update, init=lambda params: jnp.zeros((), jnp.int32)), gk.sgd(0.1))
    centres = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    step = gk.training.make_train_step(
        lambda x, batch: jnp.sum(jnp.square(x[None] - centres), axis=1) / 2, tx, donate=False
    )
    x = np.array([2.0, 2.0])
    state = step.init(jnp.asarray(x, jnp.float32))
    for _ in range(2):
        state, _ = step(state, None)
        away = x - np.asarray(centres)
        x = x - 0.1 * (np.sum(away**2, axis=1) / 2) @ away
    np.testing.assert_allclose(np.asarray(state.params), x, rtol=1e-5)
    assert int(state.opt_state[0]) == 2


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="update must be callable"):
        aggregate(0.1)
    tx = aggregate(lambda g, state, **extra: (g, state))
    with pytest.raises(ValueError, match="aggregate: every leaf needs the same leading axis"):
        tx.update({"a": jnp.ones((2, 1)), "b": jnp.ones((3, 1))}, tx.init({"a": jnp.ones(1), "b": jnp.ones(1)}))
