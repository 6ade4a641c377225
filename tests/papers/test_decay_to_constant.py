"""The decay of BigNAS is optax's, with an end value."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk


@pytest.mark.parametrize("staircase", [False, True])
def test_is_optax_with_an_end_value(staircase: bool, x64: None) -> None:
    own = gk.schedules.decay_to_constant(0.3, transition_steps=7, staircase=staircase, floor=0.6)
    with jax.numpy_dtype_promotion("standard"):
        other = optax.exponential_decay(0.3, 7, 0.97, end_value=0.18, staircase=staircase)
        want = [float(other(step)) for step in range(0, 200, 3)]
    got = own(jnp.arange(0, 200, 3))
    np.testing.assert_allclose(got, want, rtol=1e-6)  # optax computes in float32
    assert float(got[-1]) == 0.3 * 0.6
