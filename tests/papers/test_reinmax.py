"""ReinMax and straight-through (Liu et al., 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.layers import reinmax, straight_through_categorical
from gradkit.layers.reinmax import of_sample
from tests.papers.replay import assert_equal, normal

N = 5


def exact_and_mean(of: Any, f: Any) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of E f(D) in the logits, and the mean over all D of the estimate given D."""
    x = normal(0, N)
    exact = jax.grad(lambda x: jax.nn.softmax(x) @ jax.vmap(f)(jnp.eye(N)))(x)
    each = jax.vmap(lambda d: jax.grad(lambda x: f(of(x, d)))(x))(jnp.eye(N))
    return np.asarray(exact), np.asarray(jax.nn.softmax(x) @ each)


def test_of_a_quadratic_the_mean_over_samples_is_the_gradient(x64: None) -> None:
    """Exact to second order; straight-through is exact for a linear function alone, and so is half of this."""
    A, b = normal(1, N, N), normal(2, N)
    quadratic, linear = lambda d: d @ (A + A.T) @ d + b @ d, lambda d: b @ d
    of = lambda x, d: of_sample(x, d, jnp.asarray(1.0))[0]  # noqa: E731
    through = lambda x, d: d + jax.nn.softmax(x) - jax.lax.stop_gradient(jax.nn.softmax(x))  # noqa: E731
    for f in (quadratic, linear):
        exact, mean = exact_and_mean(of, f)
        assert_equal(mean, exact, atol=1e-13)
    exact, mean = exact_and_mean(through, linear)
    assert_equal(mean, exact, atol=1e-13)
    exact, mean = exact_and_mean(through, quadratic)
    assert np.abs(mean - exact).max() > 0.1


def test_the_forward_pass_has_no_temperature_and_the_gradient_sums_to_zero(x64: None) -> None:
    x, w = normal(0, 3, N), normal(1, 3, N)

    def loss(x: jax.Array, tau: Any) -> tuple[jax.Array, Any]:
        sample, p = reinmax(7, x, tau)
        return jnp.sum(w * sample**2) + jnp.sum(jnp.sin(p)), (sample, p)

    (_, one), (_, other) = loss(x, 1.0), loss(x, 3.0)
    assert_equal(one, other)
    assert_equal(one[1], jax.nn.softmax(x))
    np.testing.assert_array_equal(np.sort(one[0], axis=1), np.eye(N)[[-1] * 3])
    g = {tau: jax.grad(loss, has_aux=True)(x, tau)[0] for tau in (1.0, 3.0)}
    for value in g.values():
        np.testing.assert_allclose(np.sum(value, axis=1), 0, atol=1e-13)
    assert np.abs(g[1.0] - g[3.0]).max() > 1e-3
    assert_equal(jax.jit(jax.grad(loss, has_aux=True))(x, 3.0)[0], g[3.0])


def test_samples_have_the_probabilities(key: jax.Array) -> None:
    p = np.array([0.5, 0.3, 0.2])
    x = jnp.log(jnp.asarray(p, jnp.float32))
    draws = 4000
    for f in (reinmax, straight_through_categorical):
        samples = jax.vmap(lambda k, f=f: f(k, x)[0])(jax.random.split(key, draws))
        # Five standard deviations of a frequency.
        assert np.all(np.abs(np.mean(samples, axis=0) - p) < 5 * np.sqrt(p * (1 - p) / draws))


def test_straight_through_hands_on_the_gradient_of_the_probabilities(x64: None) -> None:
    x, c = normal(0, 2, N), normal(1, 2, N)
    (sample, p), back = jax.vjp(lambda x: straight_through_categorical(3, x), x)
    (g,) = back((c, jnp.zeros_like(p)))
    q = np.asarray(jax.nn.softmax(x))
    assert_equal(g, q * c - q * np.sum(q * c, 1, keepdims=True))
    np.testing.assert_array_equal(np.unique(sample), [0.0, 1.0])


def test_short_numbers_and_bad_input() -> None:
    sample, p = reinmax(0, jnp.zeros((2, 3), jnp.bfloat16))
    assert sample.dtype == p.dtype == jnp.bfloat16
    g = jax.grad(lambda x: jnp.sum(reinmax(0, x)[0].astype(jnp.float32) ** 2))(jnp.zeros(3, jnp.bfloat16))
    assert g.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"tau must be in \[1, inf\), got 0.5"):
        reinmax(0, jnp.zeros(3), 0.5)
    with pytest.raises(ValueError, match="logits must be floating point"):
        reinmax(0, jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match="logits must have an axis"):
        straight_through_categorical(0, jnp.zeros(()))
