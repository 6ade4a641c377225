"""The weight of the smaller networks: nothing, a rise, everything."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk


@pytest.mark.parametrize("kind", ["linear", "exponential"])
def test_nothing_before_the_start_one_after_the_rise_and_monotone(kind: str, x64: None) -> None:
    values = np.asarray(gk.schedules.shrink_rate_schedule(5, 10, 1e-2, kind)(jnp.arange(30)))
    np.testing.assert_array_equal(values[:5], 0)
    np.testing.assert_array_equal(values[15:], 1)
    np.testing.assert_allclose(values[5], 1e-2, rtol=1e-15)
    assert (np.diff(values[4:16]) > 0).all()
    np.testing.assert_allclose(values[10], 0.505 if kind == "linear" else 0.1, rtol=1e-14)


def test_may_begin_at_once() -> None:
    np.testing.assert_array_equal(gk.schedules.shrink_rate_schedule(0, 2, 0.5)(jnp.arange(3)), [0.5, 0.75, 1.0])
