"""Linear decay, and its refinement by the gradient norms of a first run."""

import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.diagnostics import optimal_base_rate
from gradkit.schedules import array_schedule, linear_decay, refined_schedule


def test_linear_decay(x64: None) -> None:
    """Update t of T has 1 - t / T: the first 1 - 1 / T, the last 0; without the zero from 1 to 1 / T."""
    T = 8
    t = np.arange(1, T + 1)
    np.testing.assert_allclose(linear_decay(2.0, total_steps=T)(jnp.arange(T)), 2 * (1 - t / T), rtol=1e-14)
    positive = linear_decay(2.0, total_steps=T, include_zero=False)(jnp.arange(T))
    np.testing.assert_allclose(positive, 2 * (T - t + 1) / T, rtol=1e-14)
    warm = np.asarray(linear_decay(2.0, total_steps=T, warmup_steps=4)(jnp.arange(T + 2)))
    np.testing.assert_allclose(warm, [0.5, 1, 1.5, 2, 1.5, 1, 0.5, 0, 0, 0], rtol=1e-14)
    warm = np.asarray(linear_decay(2.0, total_steps=T, warmup_steps=4, include_zero=False)(jnp.arange(T + 1)))
    np.testing.assert_allclose(warm, [0.5, 1, 1.5, 2, 2, 1.5, 1, 0.5, 0], rtol=1e-14)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_constant_norms_give_the_linear_decay(norm: str) -> None:
    """1 - t / T, divided by its first value."""
    T = 50
    line = 1 - np.arange(1, T + 1) / T
    np.testing.assert_allclose(refined_schedule(np.full(T, 3.0), norm=norm), line / line[0], rtol=1e-13, atol=1e-16)


def by_the_formula(G: np.ndarray, power: int) -> np.ndarray:
    w = G ** -float(power)
    s = np.array([w[t] * w[t + 1 :].sum() / w.sum() for t in range(len(G))])
    return s / s.max()


def test_the_formula_without_a_filter() -> None:
    """Small norms in the middle: the multipliers are large there, by the square for SGD, and a warm-up comes out."""
    G = 1 + 3 * np.abs(np.linspace(-1, 1, 30)) ** 2
    for norm, power in (("l2", 2), ("l1", 1)):
        np.testing.assert_allclose(
            refined_schedule(G, norm=norm, smoothing=0.0), by_the_formula(G, power), rtol=1e-13, atol=1e-16
        )
    assert 5 < refined_schedule(G).argmax() < 15


@pytest.mark.parametrize("slope", [1.0, 0.0, -1.0])
def test_the_refined_schedule_has_the_smaller_bound(slope: float) -> None:
    """For the norms it was made of, the bound of the last iterate is below that of a linear decay and of a cosine."""
    T = 120
    p = np.arange(T) / T
    G = 10.0 ** (slope * p) + 2 * np.exp(-20 * p)
    own = optimal_base_rate(refined_schedule(G, smoothing=0.0)[:-1], G[:-1]).bound
    for other in (1 - p, 0.5 * (1 + np.cos(np.pi * p))):
        assert own < 0.99 * optimal_base_rate(other[:-1], G[:-1]).bound


def test_the_filter_takes_outliers_out_and_a_scale_changes_nothing() -> None:
    """A window of 2 floor(floor(0.1 * 60) / 2) + 1 = 7 steps; also with norms whose squares leave the range."""
    G = np.linspace(2, 1, 60)
    spiky = G.copy()
    spiky[[10, 31]] = 1000.0
    smooth = refined_schedule(G)
    assert np.abs(refined_schedule(spiky) - smooth).max() < 0.05
    assert np.abs(refined_schedule(spiky, smoothing=0.0) - smooth).max() > 0.5
    for scale in (2.0**10, 2.0**-600, 2.0**900):
        np.testing.assert_array_equal(refined_schedule(scale * G), smooth)


def test_another_length_is_the_refinement_of_interpolated_norms() -> None:
    G = np.linspace(2, 1, 40)
    want = refined_schedule(np.linspace(2, 1, 100))
    np.testing.assert_allclose(refined_schedule(G, total_steps=100), want, rtol=1e-12, atol=1e-15)


def test_the_second_run_has_one_multiplier_per_step() -> None:
    multipliers = refined_schedule(np.linspace(2, 1, 20))
    schedule = array_schedule(0.3 * multipliers)
    np.testing.assert_allclose(schedule(jnp.arange(22)), [*(0.3 * multipliers), 0, 0], rtol=2e-7)
    assert multipliers.max() == 1 and multipliers[-1] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grad_norms": np.ones((2, 2))}, "grad_norms must be one norm per step"),
        ({"grad_norms": []}, "grad_norms must be one norm per step"),
        ({"grad_norms": [1.0, 0.0]}, "grad_norms must be positive and finite, got 0.0 at step 1"),
        ({"grad_norms": [np.nan, 1.0]}, "grad_norms must be positive and finite, got nan at step 0"),
        ({"norm": "linf"}, "norm must be one of 'l2', 'l1'"),
        ({"smoothing": 1.0}, "smoothing must be in"),
        ({"total_steps": 0}, "total_steps must be an integer >= 1"),
    ],
)
def test_bad_input(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refined_schedule(**{"grad_norms": [1.0, 1.0], **arguments})


def test_bad_input_of_linear_decay() -> None:
    with pytest.raises(ValueError, match="total_steps must be an integer >= 5"):
        linear_decay(1.0, total_steps=4, warmup_steps=4)
    with pytest.raises(ValueError, match="include_zero must be True or False"):
        linear_decay(1.0, total_steps=4, include_zero=0)
