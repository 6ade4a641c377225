"""Dropout early or late (Liu et al., 2023)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.schedules import drop_rate_schedule


def values(**changes) -> list[float]:
    schedule = drop_rate_schedule(0.5, **{"cutoff_step": 3, "total_steps": 6, **changes})
    return np.asarray(schedule(jnp.arange(8))).tolist()


def test_every_mode() -> None:
    assert values() == [0.5] * 8
    assert values(mode="early") == [0.5] * 3 + [0.0] * 5
    assert values(mode="late") == [0.0] * 3 + [0.5] * 5
    assert values(mode="early", decay="linear") == [0.5, 0.25, 0.0] + [0.0] * 5
    assert values(mode="early", decay="linear", cutoff_step=1) == [0.5] + [0.0] * 7
    for decay in ("constant", "linear"):
        assert values(mode="early", decay=decay, cutoff_step=0) == [0.0] * 8


def test_linear_is_linspace(x64: None) -> None:
    for cutoff in (2, 5, 17):
        schedule = drop_rate_schedule(0.3, cutoff_step=cutoff, total_steps=20, mode="early", decay="linear")
        want = np.concatenate([np.linspace(0.3, 0, cutoff), np.zeros(22 - cutoff)])
        np.testing.assert_allclose(schedule(jnp.arange(22)), want, atol=1e-16)


def test_is_the_probability_of_dropout() -> None:
    """A traced one: half of the units at the first step, none after the cutoff."""
    schedule = drop_rate_schedule(0.5, cutoff_step=3, total_steps=6, mode="early")

    def dropped(step: jax.Array) -> jax.Array:
        return jnp.sum(jax.random.bernoulli(jax.random.key(0), schedule(step), (4000,)))

    dropout = jax.jit(dropped)
    # Four standard deviations of 4000 coins.
    assert abs(int(dropout(jnp.int32(0))) - 2000) < 4 * 0.5 * np.sqrt(4000) and dropout(jnp.int32(3)) == 0


def test_bad_input() -> None:
    for bad, message in (
        ({"rate": 1.0}, "rate must be in"),
        ({"mode": "last"}, "mode must be"),
        ({"mode": "late", "decay": "linear"}, "decay must be 'constant'"),
        ({"decay": "linear"}, "decay must be 'constant'"),
        ({"cutoff_step": 7}, "cutoff_step must be at most"),
        ({"total_steps": 0}, "total_steps must be"),
    ):
        with pytest.raises(ValueError, match=message):
            drop_rate_schedule(**{"rate": 0.1, "cutoff_step": 3, "total_steps": 6, **bad})
