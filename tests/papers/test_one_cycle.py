"""One cycle: both conventions, and momentum as the mirror image of the rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradkit.schedules import one_cycle, one_cycle_b1


def reference(ends: list[float], values: list[float], anneal: str, step: int) -> float:
    """From value to value, the bends at real positions."""
    places = [0.0, *ends]
    for i in range(len(ends)):
        if step <= places[i + 1] or i == len(ends) - 1:
            p = min((step - places[i]) / (places[i + 1] - places[i]), 1.0)
            far = p if anneal == "linear" else (1 - np.cos(np.pi * p)) / 2
            return values[i] + (values[i + 1] - values[i]) * far
    raise AssertionError


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("convention", ["torch", "optax"])
@pytest.mark.parametrize(("T", "pct"), [(20, 0.3), (37, 0.27)])
def test_positions_and_values(anneal: str, three_phase: bool, convention: str, T: int, pct: float, x64: None) -> None:
    shape = {"pct_start": pct, "anneal": anneal, "three_phase": three_phase, "convention": convention}
    ends = [pct * T - 1, 2 * pct * T - 2, T - 1] if convention == "torch" else [int(pct * T), int(2 * pct * T), T]
    values = [0.02, 0.5, 0.02, 0.02 / 100]
    momenta = [0.95, 0.85, 0.95, 0.95]
    if not three_phase:
        del ends[1], values[2], momenta[2]
    rate = one_cycle(0.5, total_steps=T, div_factor=25.0, final_div_factor=100.0, **shape)
    b1 = one_cycle_b1(T, **shape)
    steps = jnp.arange(T + 3)
    np.testing.assert_allclose(rate(steps), [reference(ends, values, anneal, t) for t in range(T + 3)], rtol=1e-12)
    np.testing.assert_allclose(b1(steps), [reference(ends, momenta, anneal, t) for t in range(T + 3)], rtol=1e-14)


def test_agrees_with_optax() -> None:
    """Which works in float32: a few roundings of the peak."""

    def values(schedule) -> np.ndarray:
        with jax.numpy_dtype_promotion("standard"):
            return np.asarray(jax.vmap(schedule)(steps))

    steps = jnp.arange(23)
    cosine = optax.cosine_onecycle_schedule(20, 1.0, 0.3, 25.0, 1e4)
    ours = one_cycle(1.0, total_steps=20, convention="optax")
    np.testing.assert_allclose(ours(steps), values(cosine), atol=4 * 2.0**-24)
    linear = optax.linear_onecycle_schedule(20, 1.0, 0.3, 0.6, 25.0, 1e4)
    ours = one_cycle(1.0, total_steps=20, convention="optax", anneal="linear", three_phase=True)
    np.testing.assert_allclose(ours(steps), values(linear), atol=4 * 2.0**-24)


def test_the_paper_cycle(x64: None) -> None:
    """Lines, both ramps equal, then far below; the peak once; the ramps add up to their mean times their length."""
    schedule = one_cycle(1.0, total_steps=50, pct_start=0.42, anneal="linear", three_phase=True)
    rate = np.asarray(schedule(jnp.arange(50)))
    assert (rate == 1.0).sum() == 1 and rate.argmax() == 20
    np.testing.assert_allclose(rate[:21], rate[20:41][::-1], rtol=1e-14)
    np.testing.assert_allclose(rate[:21].sum(), 21 * (1.0 + 1 / 25) / 2, rtol=1e-14)
    np.testing.assert_allclose(rate[-1], 1 / 25 / 1e4, rtol=1e-14)


def test_momentum_is_an_affine_image_of_the_rate(x64: None) -> None:
    """Within the rise, b1 falls as the rate rises."""
    rate = np.asarray(one_cycle(1.0, total_steps=20)(jnp.arange(6)))
    b1 = np.asarray(one_cycle_b1(20)(jnp.arange(6)))
    np.testing.assert_allclose((b1 - 0.95) / (0.85 - 0.95), (rate - 0.04) / (1 - 0.04), rtol=1e-12, atol=1e-15)


def test_vmap_over_the_peak() -> None:
    got = jax.jit(jax.vmap(lambda peak: one_cycle(peak, total_steps=8)(jnp.arange(9))))(jnp.array([0.25, 1.0]))
    np.testing.assert_array_equal(4 * got[0], got[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_steps": 1}, "total_steps must be an integer >= 2"),
        ({"pct_start": 1.0}, r"pct_start must be in \(0, 1\)"),
        ({"pct_start": 0.05}, "a phase without a step"),
        ({"pct_start": 0.6, "three_phase": True}, "a phase without a step"),
        ({"anneal": "cosine"}, "anneal must be one of 'cos', 'linear'"),
        ({"convention": "fastai"}, "convention must be one of"),
        ({"three_phase": 2}, "three_phase must be one of"),
        ({"div_factor": 0.0}, "div_factor must be in"),
        ({"final_div_factor": float("nan")}, "final_div_factor must be in"),
        ({"peak_value": -0.1}, "peak_value must be in"),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        one_cycle(**{"peak_value": 1.0, "total_steps": 10, **changes})


def test_bad_momentum() -> None:
    with pytest.raises(ValueError, match="b1_peak must be in"):
        one_cycle_b1(10, b1_peak=1.0)
    with pytest.raises(ValueError, match="b1_trough must be in"):
        one_cycle_b1(10, b1_trough=-0.1)
