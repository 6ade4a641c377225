"""The surge of the best rate over the batch (Li et al., 2024)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.batches import (
    fit_surge,
    optimal_sign_rate,
    sgd_learning_rate,
    surge_learning_rate,
    surge_noise_batch,
)
from tests.papers.replay import assert_equal

MU = np.array([0.5, -0.8, 0.3])
SIGMA = np.array([2.0, 1.0, 4.0])
H = np.array([[2.0, -0.6, 0.4], [-0.6, 1.0, -0.3], [0.4, -0.3, 3.0]])


def test_the_laws() -> None:
    for a in (1.0, 3.0, 100.0):
        assert surge_learning_rate(a * 50, 0.7, 50) == pytest.approx(surge_learning_rate(50 / a, 0.7, 50))
    assert surge_learning_rate(50, 0.7, 50) == 0.7
    # Far below the peak as the root of the batch, far above as one over it.
    for a, b in ((1e-9, 4e-9), (4e9, 1e9)):
        ratio = surge_learning_rate(b * 50, 0.7, 50) / surge_learning_rate(a * 50, 0.7, 50)
        assert ratio == pytest.approx(2, rel=1e-8)
    assert sgd_learning_rate(50, 0.7, 50) == 0.35
    assert sgd_learning_rate(1e12, 0.7, 50) == pytest.approx(0.7)
    traced = jax.vmap(lambda b: surge_learning_rate(b, 0.5, 400.0))(jnp.array([100.0, 400.0]))
    np.testing.assert_allclose(traced, [0.4, 0.5], rtol=1e-6)


def test_monte_carlo_of_one_sign_step() -> None:
    """The rate that minimises E[loss(x - rate sign(g))] = -rate E<mu, s> + rate^2 E[s^T H s] / 2."""
    B, n = 8, 400_000
    g = MU + np.random.default_rng(0).standard_normal((n, 3)) * SIGMA / np.sqrt(B)
    s = np.sign(g)
    gain, curvature = s @ MU, np.einsum("ni,ij,nj->n", s, H, s)
    want = gain.mean() / curvature.mean()
    # Four standard errors of both means.
    error = 4 * (gain.std() / gain.mean() + curvature.std() / curvature.mean()) / np.sqrt(n)
    assert abs(float(optimal_sign_rate(MU, SIGMA, H, B)) / want - 1) < error < 0.02


def test_limits(x64: None) -> None:
    """Without noise, or with a large batch, the signs are known; for small batches the law holds with its N."""
    signs = np.sign(MU)
    exact = np.abs(MU).sum() / (signs @ H @ signs)
    assert_equal(optimal_sign_rate(MU, 0 * SIGMA, H, 1), exact)
    assert_equal(optimal_sign_rate(MU, SIGMA, H, 1e9), exact)
    assert_equal(optimal_sign_rate(0 * MU, 0 * SIGMA, H, 4), 0.0)

    # Little signal: e is linear far beyond the peak, to a relative (e^2 / 3).
    mu = 1e-3 * MU
    x = mu / SIGMA
    N = float(surge_noise_batch(MU * 1e-3, SIGMA, H))
    assert_equal(N, np.pi * np.trace(H) / (2 * (x @ H @ x - (x**2) @ np.diag(H))))
    peak = np.sqrt(2 * N / np.pi) * (mu**2 / SIGMA).sum() / (2 * np.trace(H))
    for B in (1.0, 100.0):
        law = surge_learning_rate(B, peak, N)
        np.testing.assert_allclose(optimal_sign_rate(mu, SIGMA, H, B), law, rtol=(B * (x**2).max()))


def test_no_surge_where_curvature_does_not_couple() -> None:
    assert surge_noise_batch(MU, SIGMA, np.diag([1.0, 2.0, 3.0])) == np.inf
    assert surge_noise_batch(MU, SIGMA, np.abs(np.sign(np.outer(MU, MU))) - np.sign(np.outer(MU, MU)) * 2) == np.inf


def test_fit_recovers_the_law() -> None:
    batches = 2.0 ** np.arange(2, 13)
    rates = np.array([surge_learning_rate(b, 3e-3, 170.0) for b in batches])
    found = fit_surge(np.append(batches, 7.0), np.append(rates, np.nan))
    np.testing.assert_allclose(np.array(found), [3e-3, 170.0], rtol=1e-10)
    noisy = rates * np.exp(0.02 * np.random.default_rng(0).standard_normal(11))
    # Each of the two is determined by some five rates with an error of 2 %.
    np.testing.assert_allclose(np.array(fit_surge(batches, noisy)), [3e-3, 170.0], rtol=0.08)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: surge_learning_rate(0, 1.0, 1.0), "batch_size must be in"),
        (lambda: surge_learning_rate(1, 1.0, 0.0), "noise_batch must be in"),
        (lambda: sgd_learning_rate(1, float("nan"), 1.0), "max_learning_rate must be in"),
        (lambda: optimal_sign_rate(MU, SIGMA, H, -1), "batch_size must be in"),
        (lambda: optimal_sign_rate(MU, SIGMA[:2], H, 1), "of shapes"),
        (lambda: surge_noise_batch(MU, SIGMA, H[:2]), "of shapes"),
        (lambda: fit_surge([1.0, 2.0], [1.0]), "vectors of one length"),
        (lambda: fit_surge([1.0, 2.0], [1.0, 0.0]), "must be positive"),
        (lambda: fit_surge([4.0, 4.0], [1.0, 1.0]), "determine no peak"),
        (lambda: fit_surge([1.0, 4.0, 16.0], [1.0, 4.0, 16.0]), "determine no peak"),
        (lambda: fit_surge([], []), "determine no peak"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
