"""SmoothGrad (Smilkov et al., 2017)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.gradients import smoothgrad
from tests.papers.replay import assert_equal, normal


def test_of_a_linear_score_it_is_the_gradient_for_any_noise(x64: None) -> None:
    w, x = normal(0, 3, 4), normal(1, 3, 4)
    for level in (0.0, 5.0):
        assert_equal(smoothgrad(lambda x: jnp.sum(w * x), num_samples=3, noise_level=level)(x, 0), w)
    assert_equal(smoothgrad(lambda x: jnp.sum(w * x), num_samples=3, squared=True)(x, 0), np.square(w))


def test_the_noise_is_a_share_of_the_range_of_the_one_input(x64: None) -> None:
    """Of x^3 / 3 the mean of the squares is x^2 + sigma^2; each example has a range of its own."""
    x, n = normal(1, 2, 5) * jnp.array([[1.0], [10.0]]), 4000
    fn = smoothgrad(lambda x: jnp.sum(x**3) / 3, num_samples=n, noise_level=0.2)
    got = np.asarray(jax.jit(jax.vmap(fn))(x, jax.random.split(jax.random.key(0), 2)))
    X = np.asarray(x)
    sigma = 0.2 * (X.max(1) - X.min(1))[:, None]
    # (x + sigma eps)^2 has the variance 4 x^2 sigma^2 + 2 sigma^4.
    error = 5 * np.sqrt((4 * X**2 * sigma**2 + 2 * sigma**4) / n)
    assert np.all(np.abs(got - X**2 - sigma**2) < error)
    assert np.all(error < sigma**2 + X**2)


def test_of_a_quadratic_the_mean_is_the_plain_gradient(x64: None) -> None:
    A, x, n = normal(0, 4, 4), normal(1, 4), 4000
    got = smoothgrad(lambda x: x @ A @ x, num_samples=n)(x, 3)
    H = np.asarray(A + A.T)
    sigma = 0.15 * float(jnp.max(x) - jnp.min(x))
    assert np.all(np.abs(np.asarray(got) - H @ np.asarray(x)) < 5 * sigma * np.linalg.norm(H, axis=1) / np.sqrt(n))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"fn must give a scalar, got shape \(3,\)"):
        smoothgrad(lambda x: x)(jnp.ones(3), 0)
    with pytest.raises(ValueError, match="x must be floating point"):
        smoothgrad(jnp.sum)(jnp.ones(3, jnp.int32), 0)
    for name, bad in (("num_samples", 0), ("noise_level", -1.0), ("squared", 1)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            smoothgrad(jnp.sum, **{name: bad})
