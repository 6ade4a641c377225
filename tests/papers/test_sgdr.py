"""SGDR: restarts at integers, the cosine inside a cycle, cycles of fractional length."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.schedules import sgdr, sgdr_boundaries, warmup

# Of float32, twice: the cosine, and the value.
ROUNDING = 2 * 2.0**-24


def reference(step: int, peak: float, period: int, mult: str, end: float, peak_mult: float) -> float:
    """Walks from cycle to cycle in exact arithmetic."""
    start, length, i = Fraction(0), Fraction(period), 0
    while step >= start + length:
        start, length, i = start + length, length * Fraction(mult), i + 1
    p = float((step - start) / length)
    return end + (peak * peak_mult**i - end) * (1 + np.cos(np.pi * p)) / 2


@pytest.mark.parametrize(("period", "mult"), [(4, "2"), (7, "1"), (3, "3"), (4, "1.5"), (10, "1.1"), (1, "1.25")])
def test_against_a_walk_through_the_cycles(period: int, mult: str, x64: None) -> None:
    schedule = sgdr(0.3, period=period, period_mult=float(mult), end_value=0.02, peak_mult=0.8)
    want = [reference(step, 0.3, period, mult, 0.02, 0.8) for step in range(300)]
    np.testing.assert_allclose(schedule(jnp.arange(300)), want, rtol=1e-13)


def test_boundaries_of_the_paper() -> None:
    assert sgdr_boundaries(4, period=4, period_mult=2) == [0, 4, 12, 28]
    assert sgdr_boundaries(3, period=5) == [0, 5, 10]
    # 10 and 10 * 1.1 are whole together, although 10 + 10 * 1.1 is not 21 in floating point everywhere.
    assert sgdr_boundaries(4, period=10, period_mult=1.1) == [0, 10, 21, 34]
    assert sgdr_boundaries(0, period=4) == []


@pytest.mark.parametrize("mult", [1, 2, 3, 10])
def test_every_restart_is_exactly_the_peak(mult: int) -> None:
    """Up to the last step a 32-bit counter reaches; a logarithm is wrong by one at some of these."""
    starts = [b for b in sgdr_boundaries(40, period=3, period_mult=mult) if 0 < b < 2**31]
    schedule = sgdr(1.0, period=3, period_mult=mult)
    assert (schedule(jnp.array(starts)) == 1.0).all()
    before = np.asarray(schedule(jnp.array(starts) - 1))
    assert (before <= 0.25 + ROUNDING).all() and (before >= 0).all()
    assert jnp.isfinite(schedule(jnp.array([2**31 - 1]))).all()


def test_composes_after_a_warmup_and_under_vmap() -> None:
    schedule = warmup(2, 1.0) + sgdr(1.0, period=2)
    np.testing.assert_allclose(schedule(jnp.arange(7)), [0, 0.5, 1, 0.5, 1, 0.5, 1], rtol=3e-7)
    got = jax.jit(jax.vmap(lambda peak: sgdr(peak, period=3, period_mult=2)(jnp.arange(10))))(jnp.array([0.5, 1.0]))
    np.testing.assert_array_equal(2 * got[0], got[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"period": 0}, "period must be an integer >= 1"),
        ({"period": 2.5}, "period must be an integer >= 1"),
        ({"period_mult": 0.5}, r"period_mult must be in \[1, inf\)"),
        ({"period_mult": 1.001}, "period_mult must be 1 or at least 1.01"),
        ({"period_mult": jnp.array(2.0)}, "must be a Python number"),
        ({"peak_mult": 0.0}, "peak_mult must be in"),
        ({"peak_value": float("nan")}, "peak_value must be in"),
        ({"end_value": -1.0}, "end_value must be in"),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sgdr(**{"peak_value": 1.0, "period": 4, **changes})
