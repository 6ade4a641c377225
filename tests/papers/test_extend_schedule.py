"""Longer runs at the same learning rate: the numbers of the official code, and what they promise."""

import numpy as np
import pytest

from gradkit.diagnostics import extend_cooldown, extend_second_stage, optimal_base_rate, transfer_base_rate


def wsd(steps: int, cooldown: float) -> np.ndarray:
    return 1 - np.clip(np.arange(steps) - (1 - cooldown) * steps, 0, None) / (cooldown * steps)


@pytest.mark.parametrize(
    ("times", "cooldown", "factor"), [(1.5, 0.445, 0.64), (2, 0.63, 0.535), (3, 0.87, 0.435), (4, 1.0, 0.38)]
)
def test_the_numbers_of_the_official_code(times: float, cooldown: float, factor: float) -> None:
    """Which tries fractions on a grid of 0.005."""
    steps = int(1000 * times)
    assert extend_cooldown(1000, steps) == pytest.approx(cooldown, abs=0.0051)
    assert extend_second_stage(1000, steps) == pytest.approx(factor, abs=0.0051)


def test_the_tuned_rate_stays_the_best() -> None:
    tuned = optimal_base_rate(wsd(200, 0.3)).base_rate
    c = extend_cooldown(200, 300, cooldown=0.3)
    assert optimal_base_rate(wsd(300, c)).base_rate == pytest.approx(tuned, rel=1e-9)
    factor = extend_second_stage(200, 300, cooldown=0.3)
    rates = np.where(np.arange(300) < 0.7 * 200, 1, factor) * wsd(300, 0.3)
    assert optimal_base_rate(rates).base_rate == pytest.approx(tuned, rel=1e-9)
    # Without either the rate would be too large.
    assert optimal_base_rate(wsd(300, 0.3)).base_rate < 0.9 * tuned


def test_nothing_changes_where_nothing_is_extended() -> None:
    assert extend_cooldown(200, 200, cooldown=0.3) == pytest.approx(0.3)
    assert extend_second_stage(200, 200, cooldown=0.3) == pytest.approx(1.0)


def test_a_rate_is_transferred_there_and_back() -> None:
    short, long = wsd(100, 0.2), 1 - np.arange(400) / 400
    there = transfer_base_rate(0.1, short, long)
    assert transfer_base_rate(there, long, short) == pytest.approx(0.1, rel=1e-14)
    want = 0.1 * optimal_base_rate(long).base_rate / optimal_base_rate(short).base_rate
    assert there == pytest.approx(want, rel=1e-14)
    # Four times the steps of one schedule: about half the rate, 1 / sqrt(4), up to the logarithm in the bound.
    assert transfer_base_rate(1.0, wsd(100, 0.2), wsd(400, 0.2)) == pytest.approx(0.5, rel=0.15)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_steps": 1}, "total_steps must be an integer >= 2"),
        ({"new_total_steps": 50}, "new_total_steps must be an integer >= 100"),
        ({"cooldown": 0.0}, "cooldown must be in"),
        ({"shape": "cosine"}, "shape must be one of 'linear', '1-sqrt'"),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    for function in (extend_cooldown, extend_second_stage):
        with pytest.raises(ValueError, match=message):
            function(**{"total_steps": 100, "new_total_steps": 200, **changes})


def test_bad_rate() -> None:
    with pytest.raises(ValueError, match="rate must be in"):
        transfer_base_rate(-1.0, wsd(100, 0.2), wsd(200, 0.2))
