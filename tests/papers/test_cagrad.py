"""CAGrad: its convex problem, its ball around the mean, and its two limits."""

import numpy as np
import pytest
from scipy.optimize import minimize

from gradkit.aggregation import cagrad
from tests.papers.stacks import aggregate, conflicting, draw


def value(J: np.ndarray, c: float, w: np.ndarray) -> float:
    g, g0 = w @ J, J.mean(0)
    return g @ g0 + c * np.linalg.norm(g0) * np.linalg.norm(g)


@pytest.mark.parametrize("c", [0.1, 0.5, 2.0])
def test_weights_reach_the_minimum_of_the_dual_problem(c: float, x64: None) -> None:
    """Never above what a general solver finds, and the result is the mean plus a step of length c |g_0|."""
    for seed in range(3):
        J = conflicting(seed)
        out, g0 = aggregate(cagrad(c=c), J), J.mean(0)
        np.testing.assert_allclose(np.linalg.norm(out - g0), c * np.linalg.norm(g0), rtol=1e-9)
        direction = np.linalg.lstsq(J.T, out - g0, rcond=None)[0]
        w = direction / direction.sum()
        assert (w >= -1e-9).all()
        found = minimize(
            lambda w, J=J: value(J, c, w),
            np.full(4, 0.25),
            bounds=[(0, 1)] * 4,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            tol=1e-12,
        )
        assert value(J, c, w) <= found.fun + 1e-9


def test_the_worst_gain_is_the_best_of_the_ball(x64: None) -> None:
    """Of many points at distance c |g_0| from the mean none is better for the task that gains least."""
    J, c = draw(1), 0.5
    out, g0 = aggregate(cagrad(c=c), J), J.mean(0)
    sphere = draw(2, 2000)
    points = g0 + c * np.linalg.norm(g0) * sphere / np.linalg.norm(sphere, axis=1, keepdims=True)
    assert (J @ out).min() >= (points @ J.T).min(1).max()
    assert (J @ out).min() > (J @ g0).min()


def test_without_c_it_is_the_mean(x64: None) -> None:
    J = draw(3)
    np.testing.assert_allclose(aggregate(cagrad(c=0.0), J), J.mean(0), rtol=1e-13)


def test_small_gradients_are_not_taken_for_none(x64: None) -> None:
    """With the threshold of torchjd, of the squared Frobenius norm, the result of these is zero."""
    J = draw(4)
    np.testing.assert_allclose(aggregate(cagrad(), 1e-5 * J), 1e-5 * aggregate(cagrad(), J), rtol=1e-9)
    np.testing.assert_array_equal(aggregate(cagrad(norm_eps=1e-4), 1e-4 * J), 0)


def test_at_a_pareto_stationary_point(x64: None) -> None:
    """The zero vector is in the hull of the gradients, and their mean g_0 is not zero: the ball of radius c |g_0|
    around g_0 has the zero vector, of which no task gets worse, for c > 1 alone."""
    J = draw(5, 3)
    J[2] = -0.2 * J[0] - 0.4 * J[1]
    assert np.abs(J.mean(0)).max() > 0.1
    np.testing.assert_array_equal(aggregate(cagrad(c=1.5), J), 0)
    off = aggregate(cagrad(c=0.6), J) - J.mean(0)
    np.testing.assert_allclose(np.linalg.norm(off), 0.6 * np.linalg.norm(J.mean(0)), rtol=1e-9)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"\bc must be in \[0, inf\)"):
        cagrad(c=-0.1)


def test_losses_of_very_different_sizes_in_float32(x64: None) -> None:
    """Norms from 0.1 to 30: the small gradients decide, and neither vanish in the rounding of the large ones nor are
    they taken for none."""
    for seed in range(5):
        J = draw(seed, 6, 40) * np.array([1, 10, 0.1, 1, 30, 0.3])[:, None]
        exact = aggregate(cagrad(), J)
        np.testing.assert_allclose(np.linalg.norm(exact - J.mean(0)), 0.5 * np.linalg.norm(J.mean(0)), rtol=1e-9)
        rounded = aggregate(cagrad(), J.astype(np.float32))
        # Inner products of 2^-24, whose root the norm of the shortest vector is known to.
        assert np.linalg.norm(rounded - exact) < 1e-3 * np.linalg.norm(exact)
