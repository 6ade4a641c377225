"""The curve of a schedule in characters: its height, its axes, and schedules of any kind."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.schedules.plot import BLOCKS, curve

HEIGHT = 4


def heights(text: str) -> np.ndarray:
    """What a drawing shows, column by column, from 0 to 1 of the axis."""
    rows = text.splitlines()[:HEIGHT]
    start = max(row.find("┤") for row in rows) + 1
    width = len(text.splitlines()[HEIGHT]) - start
    return np.array([[BLOCKS.index(c) for c in row[start:].ljust(width)] for row in rows]).sum(0) / 8 / HEIGHT


def test_a_column_is_as_high_as_the_value() -> None:
    """To half an eighth of a line, and a column's share of the steps."""
    schedule = gk.schedules.warmup(100, 2.0) + gk.schedules.decay("cosine", 100)
    got = heights(schedule.plot(width=60, height=HEIGHT))
    at = (np.arange(len(got)) + 0.5) / len(got) * 201 - 0.5
    want = np.asarray(schedule(jnp.asarray(at, jnp.float32))) / 2.0
    assert np.abs(got - want).max() < 0.5 / 8 / HEIGHT + 0.02


def test_axes_say_what_is_drawn() -> None:
    lines = gk.schedules.plot(lambda step: 0.25 + 0 * step, 1000, width=40, height=HEIGHT).splitlines()
    assert lines[0].startswith("0.25 ┤█") and lines[HEIGHT - 1].startswith("   0 ┤")
    assert lines[-1].split() == ["0", "999"] and len(lines) == HEIGHT + 2
    assert max(map(len, lines)) == 40
    falls = gk.schedules.plot(lambda step: -1.0 * step, 5, height=HEIGHT).splitlines()
    assert falls[0].startswith(" 0 ┤") and falls[HEIGHT - 1].startswith("-4 ┤")


def test_short_long_and_foreign_schedules() -> None:
    at, values = curve(gk.schedules.sgdr(0.1, period=4), 10**8)
    assert len(at) <= 4096 and at[0] == 0 and at[-1] == 10**8 - 1 and np.isfinite(values).all()
    with_branch = lambda step: 1.0 if step < 3 else 0.5  # noqa: E731 - one step at a time
    assert curve(with_branch, 5)[1].tolist() == [1, 1, 1, 0.5, 0.5]
    assert heights(gk.schedules.plot(optax.constant_schedule(0.1), 5, height=HEIGHT)).min() == 1
    assert not heights(gk.schedules.plot(lambda step: np.nan * step, 5, height=HEIGHT)).any()
    single = gk.schedules.array_schedule([3.0])
    assert "3 ┤█" in single.plot()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="steps must be given for a schedule that has no end"):
        gk.schedules.sgdr(0.1, period=4).plot()
    with pytest.raises(ValueError, match="width must be an integer >= 20"):
        gk.schedules.plot(lambda step: step, 5, width=3)
    with pytest.raises(ValueError, match="schedule must be callable"):
        gk.schedules.plot(0.1, 5)
    with pytest.raises(ValueError, match="one number per step"):
        gk.schedules.plot(lambda step: np.ones(3), 5)
    with pytest.raises(ValueError, match="one schedule or more"):
        gk.training.save_plot({}, "curve.png")
