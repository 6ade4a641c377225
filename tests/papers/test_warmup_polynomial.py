"""Warm-up, then a power of what is left (Nado et al., 2021)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.schedules import hold, warmup_polynomial_schedule


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"power": 1.5, "warmup_power": 2.0, "init_value": 0.2, "end_value": 0.05},
        {"decay_end": 15},
        {"decay_end": 3, "init_value": 0.1},
        {"warmup_steps": 0, "end_value": 0.3},
        {"warmup_steps": 20, "total_steps": 20},
    ],
)
def test_values(shape: dict, x64: None) -> None:
    """Step by step against the formula."""
    own: dict[str, Any] = {
        "warmup_steps": 6,
        "total_steps": 20,
        "init_value": 0.0,
        "end_value": 0.0,
        "power": 2.0,
        "warmup_power": 1.0,
    }
    own |= {"decay_end": -1, **shape}
    W, D = own["warmup_steps"], own["total_steps"] - own["warmup_steps"] + 1

    def value(t: int) -> float:
        t = min(t, own["decay_end"]) if own["decay_end"] > 0 else t
        if W and t <= W:
            r = (t / W) ** own["warmup_power"]
            return 4.0 * r + (1 - r) * own["init_value"]
        left = 1 - min(t - W, D) / D
        return own["end_value"] + (4.0 - own["end_value"]) * left ** own["power"]

    schedule = warmup_polynomial_schedule(4.0, **own)
    np.testing.assert_allclose(schedule(jnp.arange(30)), [value(t) for t in range(30)], rtol=1e-13, atol=1e-15)
    # What comes after starts from the last value.
    np.testing.assert_allclose((schedule + hold())(jnp.asarray(1000)), value(30), rtol=1e-13, atol=1e-15)


def test_the_end_is_reached_one_step_after_the_last() -> None:
    schedule = warmup_polynomial_schedule(1.0, warmup_steps=2, total_steps=9)
    assert schedule(9) == 1 / 64 and schedule(10) == 0 and schedule(2) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps must be"),
        ({"warmup_steps": 30}, "total_steps must be an integer >= 30"),
        ({"total_steps": 0, "warmup_steps": 0}, "total_steps must be"),
        ({"power": 0.0}, "power must be in"),
        ({"warmup_power": float("nan")}, "warmup_power must be in"),
        ({"decay_end": -2}, "decay_end must be"),
        ({"end_value": -1.0}, "end_value must be in"),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        warmup_polynomial_schedule(1.0, **{"warmup_steps": 5, "total_steps": 20, **changes})
