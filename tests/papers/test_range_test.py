"""The range test: the rates of its steps, and what the losses say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.diagnostics import suggest_learning_rate
from gradkit.schedules import lr_range_test

RATES = np.geomspace(1e-4, 10, 200)
# Falls by 0.9 around 0.01, has its minimum above that, and grows without bound.
LOSSES = 1 - 0.9 * RATES / (RATES + 0.01) + RATES**2


def test_rates_of_both_kinds(x64: None) -> None:
    i = np.arange(9)
    linear, exponential = (lr_range_test(0.01, 1.0, steps=9, kind=kind) for kind in ("linear", "exponential"))
    np.testing.assert_allclose(linear(jnp.asarray(i)), 0.01 + 0.99 * i / 8, rtol=1e-14)
    np.testing.assert_allclose(exponential(jnp.asarray(i)), 0.01 * 100.0 ** (i / 8), rtol=1e-13)
    for schedule in (linear, exponential):
        assert schedule(0) == 0.01 and schedule(8) == 1.0 and schedule(1000) == 1.0


def test_the_steepest_descent_and_a_tenth_of_the_minimum() -> None:
    """Without smoothing: -d loss / d log rate is greatest at 0.01, and the minimum is where the derivative is 0."""
    found = suggest_learning_rate(RATES, LOSSES, smoothing=0.0)
    # To one step of the grid.
    ratio = RATES[1] / RATES[0]
    assert 1 / ratio < found.steepest / 0.01 < ratio
    assert found.tenth == RATES[LOSSES.argmin()] / 10


def test_the_smoothed_loss_is_the_corrected_running_mean() -> None:
    found = suggest_learning_rate(RATES, LOSSES, smoothing=0.9)
    weights = 0.9 ** np.arange(50)[::-1]
    np.testing.assert_allclose(found.smoothed[49], (weights * LOSSES[:50]).sum() / weights.sum(), rtol=1e-12)
    np.testing.assert_allclose(found.smoothed[0], LOSSES[0], rtol=1e-14)


def test_the_test_is_over_where_the_loss_has_grown_or_is_not_finite() -> None:
    """What comes after it changes nothing: neither a deeper minimum nor NaN."""
    lowest = np.minimum.accumulate(LOSSES)
    stop = int(np.argmax(4 * lowest < LOSSES))
    found = suggest_learning_rate(RATES, LOSSES, smoothing=0.0)
    assert found.stop == stop == len(found.smoothed)
    later = LOSSES.copy()
    later[stop + 1 :] = -100
    assert suggest_learning_rate(RATES, later, smoothing=0.0).steepest == found.steepest
    diverged = LOSSES.copy()
    diverged[150:] = [np.nan] + 49 * [0.0]
    assert suggest_learning_rate(RATES, diverged, smoothing=0.0, stop_factor=1e9).stop == 150


def test_end_to_end_on_a_quadratic() -> None:
    """Gradient descent on 0.5 x^T H x with curvatures up to 10 is stable below 0.2: the suggestions are."""
    H = jnp.array([10.0, 3.0, 1.0])
    schedule = lr_range_test(1e-4, 10.0, steps=100, kind="exponential")

    def step(x: jax.Array, t: jax.Array) -> tuple:
        return x - schedule(t) * H * x, 0.5 * (H * x * x).sum()

    losses = jax.jit(lambda: jax.lax.scan(step, jnp.ones(3), jnp.arange(100))[1])()
    found = suggest_learning_rate(schedule(jnp.arange(100)), losses, smoothing=0.5)
    assert found.stop < 100 and 0.005 < found.steepest < 0.2 and 0.005 < found.tenth < 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rates": RATES[:5]}, "must be one number per step"),
        ({"learning_rates": RATES[::-1]}, "must be positive and rise"),
        ({"losses": np.concatenate([[1.0, 1.0, np.nan], LOSSES[3:]])}, "too large after 2 steps"),
        ({"smoothing": 1.0}, "smoothing must be in"),
        ({"stop_factor": 1.0}, "stop_factor must be in"),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suggest_learning_rate(**{"learning_rates": RATES, "losses": LOSSES, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_value": 0.0}, "min_value must be in"),
        ({"max_value": 0.001}, "max_value must be at least min_value"),
        ({"steps": 1}, "steps must be an integer >= 2"),
        ({"kind": "cosine"}, "kind must be one of"),
    ],
)
def test_bad_input_of_the_schedule(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lr_range_test(**{"min_value": 0.01, "max_value": 1.0, "steps": 5, **changes})
