"""The power schedule: its law, the warm-up that aims at it, and the last decay."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.schedules import power_schedule


def test_the_rate_is_a_power_of_the_tokens_below_the_cap(x64: None) -> None:
    """On log axes a line of the exponent; above it the cap, also at step 0, where no token was seen."""
    schedule = power_schedule(0.5, amplitude=3.0, exponent=-0.7, batch_size=2, tokens_per_step=4)
    steps = np.arange(200)
    rates = np.asarray(schedule(jnp.asarray(steps)))
    with np.errstate(divide="ignore"):
        want = np.minimum(0.5, 2 * 3.0 * (4.0 * steps) ** -0.7)
    np.testing.assert_allclose(rates, want, rtol=1e-13)
    slopes = np.diff(np.log(rates[20:])) / np.diff(np.log(steps[20:]))
    np.testing.assert_allclose(slopes, -0.7, rtol=1e-9)
    assert rates[0] == 0.5 and rates[-1] < 0.5


def test_at_equal_tokens_the_rate_is_linear_in_the_batch(x64: None) -> None:
    """Four times the sequences per step: a quarter of the steps to the same token, at four times the rate."""
    small = power_schedule(10.0, amplitude=0.1, batch_size=8, tokens_per_step=8 * 64)
    large = power_schedule(10.0, amplitude=0.1, batch_size=32, tokens_per_step=32 * 64)
    for step in (1, 10, 1000):
        np.testing.assert_allclose(large(step), 4 * small(4 * step), rtol=1e-13)


def test_the_warmup_aims_at_the_law_and_not_at_the_peak(x64: None) -> None:
    schedule = power_schedule(1.0, amplitude=1.0, exponent=-0.5, warmup_steps=16)
    np.testing.assert_allclose(schedule(jnp.array([0, 4, 16, 64])), [0.0, 0.25 / 4, 0.25, 0.125], rtol=1e-14)
    capped = power_schedule(0.1, amplitude=1.0, exponent=-0.5, warmup_steps=16)
    np.testing.assert_allclose(capped(jnp.array([8, 16, 100, 400])), [0.05, 0.1, 0.1, 0.05], rtol=1e-14)


@pytest.mark.parametrize("shape", ["exponential", "linear", "cosine"])
def test_the_last_decay_multiplies_and_ends_at_its_ratio(shape: str, x64: None) -> None:
    """The official constants of the shifted exponential; after the decay the rate stays, and never is negative."""
    own = {"amplitude": 1.0, "exponent": -0.5, "warmup_steps": 2}
    law = power_schedule(1.0, **own)
    schedule = power_schedule(1.0, **own, decay_start=20, decay_steps=10, decay_ratio=0.1, decay_shape=shape)
    steps = np.arange(31)
    factor = np.asarray(schedule(jnp.asarray(steps))) / np.maximum(np.asarray(law(jnp.asarray(steps))), 1e-300)
    x, r, e = np.clip(steps - 20, 0, None), 0.1, math.e
    want = {
        "exponential": (1 - r) * e / (e - 1) * np.exp(-x / 10) + (r * e - 1) / (e - 1),
        "linear": 1 + (r - 1) * x / 10,
        "cosine": r + (1 - r) * (1 + np.cos(np.pi * x / 10)) / 2,
    }[shape]
    np.testing.assert_allclose(factor[1:], want[1:], rtol=1e-13)
    np.testing.assert_allclose(schedule(jnp.array([31, 100, 10**6])), 0.1 * law(30), rtol=1e-13)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peak_value": -1.0}, "peak_value must be in"),
        ({"amplitude": float("nan")}, "amplitude must be in"),
        ({"exponent": 0.5}, "exponent must be in"),
        ({"exponent": float("nan")}, "exponent must be in"),
        ({"warmup_steps": -1}, "warmup_steps must be an integer"),
        ({"tokens_per_step": 0}, "tokens_per_step must be in"),
        ({"batch_size": -1}, "batch_size must be in"),
        ({"decay_ratio": 2.0}, "decay_ratio must be in"),
        ({"decay_shape": "sqrt"}, "decay_shape must be one of"),
        ({"decay_steps": 5}, "decay_steps must be 0 without decay_start"),
        ({"decay_start": 10}, "decay_steps must be an integer >= 1"),
        ({"decay_start": 2, "decay_steps": 5, "warmup_steps": 3}, "decay_start must be an integer >= 3"),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        power_schedule(**{"peak_value": 1.0, **changes})
