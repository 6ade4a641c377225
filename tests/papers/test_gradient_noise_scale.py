"""The gradient noise scale: unbiased estimators, averages before the ratio, and the hyperbola of steps and examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.diagnostics import (
    critical_batch_size,
    fit_steps_examples,
    from_moments,
    gradient_noise_scale,
    optimal_rate,
)
from gradkit.gradients import GradientMoments, gradient_moments


def feed(meter, small: np.ndarray, big: np.ndarray):
    """All measurements through one scan; the estimates after each."""

    def body(state, squares):
        estimate, state = meter.update(state, sq_small=squares[0], sq_big=squares[1])
        return state, estimate

    state, estimates = jax.lax.scan(body, meter.init(), jnp.stack([jnp.asarray(small), jnp.asarray(big)], 1))
    return estimates, state


def test_both_estimates_are_unbiased(x64: None) -> None:
    """Gradients G + noise of covariance Sigma: the means of both estimates are |G|^2 and tr(Sigma)."""
    rng = np.random.default_rng(0)
    b, k, steps, n = 4, 8, 4000, 6
    G, sigma = rng.standard_normal(n), rng.uniform(0.5, 3.0, n)
    parts = G + rng.standard_normal((steps, k, n)) * sigma / np.sqrt(b)
    small, big = (parts**2).sum(-1).mean(-1), (parts.mean(1) ** 2).sum(-1)
    _, state = feed(gradient_noise_scale(b, b * k, decay=0.0), small, big)
    assert int(state.count) == steps

    B = b * k
    grad_sq, noise = (B * big - b * small) / (B - b), (small - big) / (1 / b - 1 / B)
    for each, true in ((grad_sq, (G**2).sum()), (noise, (sigma**2).sum())):
        # Four standard errors of the mean.
        assert abs(each.mean() - true) < 4 * each.std() / np.sqrt(steps)
    # The moving average has the variance of one measurement times (1 - decay) / (1 + decay), and 2 % for its start.
    estimates, _ = feed(gradient_noise_scale(b, B, decay=0.999), small, big)
    error = 1.02 * grad_sq.std() * np.sqrt(0.001 / 1.999)
    assert abs(estimates.grad_sq[-1] - (G**2).sum()) < 4 * error


def test_averages_are_corrected_and_taken_before_the_ratio(x64: None) -> None:
    """Against the definition, in numpy."""
    small, big = np.array([10.0, 3.0, 8.0, 9.0]), np.array([4.0, 2.5, 1.0, 4.0])
    b, B, decay = 2, 6, 0.7
    estimates, _ = feed(gradient_noise_scale(b, B, decay=decay), small, big)
    grad_sq, noise = (B * big - b * small) / (B - b), (small - big) / (1 / b - 1 / B)
    for t in range(4):
        weights = decay ** np.arange(t, -1, -1)
        weights = weights / weights.sum()
        want = weights @ noise[: t + 1], weights @ grad_sq[: t + 1]
        np.testing.assert_allclose(np.array([estimates.noise[t], estimates.grad_sq[t]]), want, rtol=1e-12)
        ratio = want[0] / want[1] if want[1] > 0 else np.nan
        np.testing.assert_allclose(estimates.noise_scale[t], ratio, rtol=1e-12)
    assert np.isnan(estimates.noise_scale).any() and np.isfinite(estimates.noise_scale).any()


def test_a_constant_measurement_is_reported_at_once() -> None:
    for decay in (0.0, 0.95, 0.9999):
        meter = gradient_noise_scale(1, 4, decay=decay)
        estimate, _ = meter.update(meter.init(), sq_small=10.0, sq_big=4.0)
        # |G|^2 + 8/1 = 10 and |G|^2 + 8/4 = 4; the correction of 0.9999 is known to 24 bits less 13.
        np.testing.assert_allclose(np.array(estimate), [4.0, 2.0, 8.0], rtol=2.0**-10 if decay > 0.99 else 1e-5)


def test_no_signal_is_nan_not_infinity() -> None:
    meter = gradient_noise_scale(1, 2)
    estimate, state = meter.update(meter.init(), sq_small=4.0, sq_big=1.0)
    assert jnp.isnan(estimate.noise_scale) and estimate.grad_sq < 0
    for _ in range(3):
        estimate, state = meter.update(state, sq_small=4.0, sq_big=4.0)
    assert jnp.isfinite(estimate.noise_scale)


def test_scaling_the_loss_leaves_the_ratio_alone() -> None:
    meter = gradient_noise_scale(1, 4)
    a, _ = meter.update(meter.init(), sq_small=10.0, sq_big=4.0)
    c, _ = meter.update(meter.init(), sq_small=40.0, sq_big=16.0)
    assert a.noise_scale == c.noise_scale and c.noise == 4 * a.noise


def test_from_moments(x64: None) -> None:
    """Over the tree, from microbatches; identical parts have no noise."""
    x = jnp.asarray(np.random.default_rng(1).standard_normal((8, 2)))
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}

    def loss(p: dict, x: jax.Array) -> jax.Array:
        return jnp.mean((x @ p["w"] + p["b"]) ** 2)

    _, moments = gradient_moments(loss, 4)(params, x)
    parts = [jax.grad(loss)(params, x[i::4]) for i in range(4)]
    squares = [sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(part)) for part in parts]
    whole = sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(jax.grad(loss)(params, x)))
    got = from_moments(moments)
    np.testing.assert_allclose(
        np.array([got["sq_small"], got["sq_big"]]), np.array([np.mean(squares), whole]), rtol=1e-12
    )
    same = GradientMoments(jnp.ones(3), jnp.ones(3), jnp.array(3.0), jnp.int32(2))
    meter = gradient_noise_scale(2, 4)
    estimate, _ = meter.update(meter.init(), **from_moments(same))
    assert estimate.noise_scale == 0.0


def test_formulas() -> None:
    """At the critical batch twice the least of both, half the gain; the two ends of the rate."""
    S, E = 100.0, 6400.0
    B = critical_batch_size(S, E)
    assert B == 64.0 and (2 * S / S - 1) * (2 * E / E - 1) == 1 and 2 * E / (2 * S) == B
    assert optimal_rate(0.8, batch_size=B, noise_scale=B) == 0.4
    assert optimal_rate(0.8, batch_size=B, noise_scale=0.0) == 0.8


def test_fit_recovers_the_hyperbola() -> None:
    """Exactly from exact runs over five decades of batch sizes, runs that failed left out; nearly from noisy ones."""
    S_min, E_min = 300.0, 5e6
    batch = 10.0 ** np.arange(1, 7)
    steps = S_min + E_min / batch
    fit = fit_steps_examples(np.append(steps, np.nan), np.append(batch * steps, np.inf))
    np.testing.assert_allclose(np.array(fit), [S_min, E_min], rtol=1e-10)
    noisy = steps * np.exp(0.01 * np.random.default_rng(0).standard_normal(6))
    # Each of the two is determined by about three runs with an error of 1 %.
    np.testing.assert_allclose(fit_steps_examples(noisy, batch * noisy), [S_min, E_min], rtol=0.04)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gradient_noise_scale(8, 8), "batch_big must be above batch_small"),
        (lambda: gradient_noise_scale(0, 8), "batch_small must be an integer >= 1"),
        (lambda: gradient_noise_scale(1, 8, decay=1.0), r"decay must be in \[0, 1\)"),
        (lambda: gradient_noise_scale(1, 8, decay=float("nan")), "decay must be in"),
        (lambda: gradient_noise_scale(1, 8).update(gradient_noise_scale(1, 8).init(), sq_big=1.0), "needs sq_small"),
        (lambda: critical_batch_size(0, 1), "min_steps must be in"),
        (lambda: optimal_rate(0.1, batch_size=0, noise_scale=1), "batch_size must be in"),
        (lambda: optimal_rate(0.1, batch_size=1, noise_scale=-1), "noise_scale must be in"),
        (lambda: fit_steps_examples([1.0, 2.0], [1.0]), "vectors of one length"),
        (lambda: fit_steps_examples([1.0, -2.0], [1.0, 1.0]), "must be positive"),
        (lambda: fit_steps_examples([10.0, 20.0], [100.0, 200.0]), "determine no hyperbola"),
        (lambda: fit_steps_examples([np.nan], [np.nan]), "determine no hyperbola"),
    ],
)
def test_bad_input(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
