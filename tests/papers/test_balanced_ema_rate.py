"""The rate between the plain mean and exponential forgetting."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk


@pytest.mark.parametrize("kappa", [0.0, 0.3, 0.5, 1.0])
def test_is_the_recursion(kappa: float, x64: None) -> None:
    m = 0.1
    want = [m**kappa]
    for _ in range(49):
        want.append(want[-1] / (want[-1] + (1 - m) ** kappa))
    got = gk.schedules.balanced_ema_rate(m, kappa)(jnp.arange(50))
    np.testing.assert_allclose(got, want, rtol=50 * 2.0**-52)  # a rounding or two per step of the recursion


def test_ends_are_the_mean_and_a_constant_and_the_limit_is_between(x64: None) -> None:
    t = np.arange(20)
    np.testing.assert_allclose(gk.schedules.balanced_ema_rate(0.2, 0.0)(jnp.asarray(t)), 1 / (t + 1), rtol=1e-14)
    np.testing.assert_allclose(gk.schedules.balanced_ema_rate(0.2, 1.0)(jnp.asarray(t)), 0.2, rtol=1e-14)
    np.testing.assert_allclose(gk.schedules.balanced_ema_rate(0.2, 0.5)(10**6), 1 - 0.8**0.5, rtol=1e-14)


def test_what_is_outside_its_range_is_refused() -> None:
    for momentum, kappa in ((0.0, 0.5), (1.0, 0.5), (0.1, -0.1), (0.1, 1.1)):
        with pytest.raises(ValueError, match="must be"):
            gk.schedules.balanced_ema_rate(momentum, kappa)
