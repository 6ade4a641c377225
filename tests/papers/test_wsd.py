"""WSD: its formulas, continuity, the branch of a cooldown, cycles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.schedules import Schedule, wsd, wsd_cooldown, wsd_cycles

SHAPES = ["linear", "1-sqrt", "cosine", "1-square", "exponential", "half_life"]
W, S, N = 5, 7, 9


def reference(shape: str, step: int, peak: float, init: float, end: float, half_life: float) -> float:
    """The cases of the paper, one after the other."""
    if step < W:
        return init + (peak - init) * step / W
    if step < W + S:
        return peak
    if step >= W + S + N:
        return end
    p = (step - W - S) / N
    return {
        "linear": end + (peak - end) * (1 - p),
        "1-sqrt": end + (peak - end) * (1 - np.sqrt(p)),
        "cosine": end + (peak - end) * (1 + np.cos(np.pi * p)) / 2,
        "1-square": end + (peak - end) * (1 - p**2),
        "exponential": peak * (end / peak) ** p,
        "half_life": peak * 0.5 ** ((step - W - S) / half_life),
    }[shape]


@pytest.mark.parametrize("shape", SHAPES)
def test_formulas_and_end_value(shape: str, x64: None) -> None:
    """Every shape honours the end value: no jump up to it after the decay."""
    half_life = 3.0 if shape == "half_life" else None
    steps = {"warmup_steps": W, "stable_steps": S, "decay_steps": N}
    schedule = wsd(0.3, **steps, shape=shape, init_value=0.02, end_value=0.05, half_life=half_life)
    want = [reference(shape, step, 0.3, 0.02, 0.05, 3.0) for step in range(W + S + N + 4)]
    got = np.asarray(schedule(jnp.arange(len(want))))
    np.testing.assert_allclose(got, want, rtol=1e-14)
    assert got[0] == 0.02 and (got[W : W + S + 1] == 0.3).all() and (got[W + S + N :] == 0.05).all()
    if shape != "half_life":
        assert (np.diff(got[W + S :]) <= 0).all()


def test_the_cooldown_branch_is_the_planned_schedule() -> None:
    """Bit for bit, for a cooldown from the planned start; from elsewhere it starts at the value there."""
    planned = wsd(0.3, warmup_steps=W, stable_steps=S, decay_steps=N, end_value=0.01)
    endless = wsd(0.3, warmup_steps=W)
    branch = wsd_cooldown(endless, start=W + S, decay_steps=N, end_value=0.01)
    steps = jnp.arange(W + S + N + 3)
    np.testing.assert_array_equal(branch(steps), planned(steps))

    early = wsd_cooldown(endless, start=3, decay_steps=2, shape="linear")
    np.testing.assert_allclose(early(jnp.arange(7)), [0, 0.06, 0.12, 0.18, 0.09, 0, 0], rtol=3e-7)


def test_cycles_return_to_the_peak() -> None:
    """One cycle is wsd; further ones start at the peak the step after their decay is over."""
    one = wsd_cycles(0.3, warmup_steps=W, cycles=[(S, N)], end_value=0.01)
    steps = jnp.arange(W + S + N + 3)
    np.testing.assert_array_equal(
        one(steps), wsd(0.3, warmup_steps=W, stable_steps=S, decay_steps=N, end_value=0.01)(steps)
    )

    two = wsd_cycles(1.0, warmup_steps=2, cycles=[(1, 2), (2, 4)], shape="linear")
    assert two(jnp.arange(13)).tolist() == [0, 0.5, 1, 1, 0.5, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0]


def test_no_step_need_be_wasted() -> None:
    """Warmup 0: the first rate is the peak. Init peak / W: the first rate is not 0."""
    assert float(wsd(0.3, warmup_steps=0)(0)) == np.float32(0.3)
    ramp = wsd(0.4, warmup_steps=4, init_value=0.4 / 4)(jnp.arange(5))
    assert ramp[0] == np.float32(0.1) and ramp[4] == np.float32(0.4)


def test_vmap_over_the_peak() -> None:
    peaks = jnp.array([0.1, 0.2])
    got = jax.jit(jax.vmap(lambda peak: wsd(peak, warmup_steps=2, stable_steps=1, decay_steps=2)(jnp.arange(6))))(peaks)
    # The schedule is proportional to its peak; a factor 2 is exact.
    np.testing.assert_array_equal(got[1], 2 * got[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps must be an integer >= 0"),
        ({"stable_steps": -1}, "stable_steps must be an integer >= 0"),
        ({"decay_steps": 1.5}, "decay_steps must be an integer >= 0"),
        ({"decay_steps": None}, "must be given together"),
        ({"shape": "sqrt"}, "shape must be one of"),
        ({"shape": "exponential"}, r"end_value must be in \(0, inf\)"),
        ({"half_life": 3.0}, "half_life must be given with"),
        ({"shape": "half_life"}, "half_life must be given with"),
        ({"shape": "half_life", "half_life": 0.0}, "half_life must be in"),
        ({"init_value": float("nan")}, "init_value must be in"),
        ({"peak_value": -1.0}, "peak_value must be in"),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    arguments = {"peak_value": 1.0, "warmup_steps": 2, "stable_steps": 2, "decay_steps": 2, **changes}
    with pytest.raises(ValueError, match=message):
        wsd(**arguments)


def test_bad_cooldown_and_cycles() -> None:
    with pytest.raises(ValueError, match="start must be an integer"):
        wsd_cooldown(wsd(1.0, warmup_steps=2), start=-1, decay_steps=2)
    for cycles in ([], [(1, 2, 3)]):
        with pytest.raises(ValueError, match="cycles must be pairs"):
            wsd_cycles(1.0, warmup_steps=2, cycles=cycles)
    assert isinstance(wsd(1.0, warmup_steps=2), Schedule)
