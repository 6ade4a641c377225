"""Gradients through the last steps of a chain (Clark et al., 2024; Prabhudesai et al., 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.gradients import low_variance_last_step, random_truncated_backprop, truncated_backprop
from tests.papers.replay import assert_equal, normal

T, B = 6, 0.7


def linear(p: Any, x: Any, u: Any) -> Any:
    return p["a"] * x + B * p["w"] * u


def last(p: Any, k: int, u: Any) -> Any:
    return truncated_backprop(linear, p, jnp.ones(()), u, keep_last=k)


@pytest.mark.parametrize("k", [1, 2, T])
def test_the_last_terms_of_a_geometric_sum(k: int, x64: None) -> None:
    """x' = a x + b w u: dx_T / dw = b sum of a^j u_{T-1-j} over the last K; the value does not depend on K."""
    p, u = {"a": jnp.asarray(0.9), "w": jnp.asarray(1.3)}, normal(0, T)
    value, g = jax.value_and_grad(last)(p, k, u)
    powers = 0.9 ** np.arange(T)
    np.testing.assert_allclose(g["w"], B * np.sum(powers[:k] * np.asarray(u)[::-1][:k]), rtol=1e-13)
    np.testing.assert_allclose(value, 0.9**T + B * 1.3 * np.sum(powers * np.asarray(u)[::-1]), rtol=1e-13)


def test_all_steps_are_the_gradient(x64: None) -> None:
    """K = T, of a chain that is not linear, also by the beginning; with K < T there is none by the beginning."""
    step = lambda w, x, u: jnp.tanh(w @ x) + u  # noqa: E731
    w, x, u = normal(0, 3, 3), normal(1, 3), normal(2, T, 3)

    def plain(w: Any, x: Any) -> Any:
        for t in range(T):
            x = step(w, x, u[t])
        return jnp.sum(x**2)

    ours = lambda w, x, k: jnp.sum(truncated_backprop(step, w, x, u, keep_last=k) ** 2)  # noqa: E731
    want = jax.grad(plain, (0, 1))(w, x)
    for checkpoint in (True, False):
        whole = lambda w, x, c=checkpoint: jnp.sum(  # noqa: E731
            truncated_backprop(step, w, x, u, keep_last=T, checkpoint=c) ** 2
        )
        assert_equal(jax.grad(whole, (0, 1))(w, x), want)
    assert not np.asarray(jax.grad(ours, 1)(w, x, T - 1)).any()


@pytest.mark.slow
def test_a_random_cut_is_one_of_the_fixed_ones(x64: None) -> None:
    """Every K from 1 to T - 1 with the same frequency; a range of cuts; a few choices."""
    p, u = {"a": jnp.asarray(0.9), "w": jnp.asarray(1.3)}, normal(0, T)
    fixed = np.array([jax.grad(last)(p, k, u)["w"] for k in range(1, T + 1)])

    def drawn(**more: Any) -> np.ndarray:
        end = lambda p, key: random_truncated_backprop(linear, p, jnp.ones(()), u, key, **more)  # noqa: E731
        g = jax.jit(jax.vmap(jax.grad(end), (None, 0)))(p, jax.random.split(jax.random.key(0), 500))["w"]
        apart = np.abs(np.asarray(g)[:, None] - fixed[None])
        assert apart.min(axis=1).max() < 1e-12
        return np.bincount(apart.argmin(axis=1) + 1, minlength=T + 1) / 500

    # Five standard deviations of a frequency of 1/5 among 500.
    np.testing.assert_allclose(drawn()[1:T], 1 / (T - 1), atol=5 * np.sqrt(0.16 / 500))
    assert drawn()[T] == 0
    assert set(np.flatnonzero(drawn(min_cut=2, max_cut=4))) == {T - 2, T - 3}
    assert set(np.flatnonzero(drawn(choices=(1, T)))) == {1, T}


@pytest.mark.full_pipeline
def test_few_steps_keep_few_carries() -> None:
    """Of 64 steps of 4096 numbers: one step keeps less than eight carries, all of them at least 64."""
    u, shape = np.zeros(64, np.float32), jax.ShapeDtypeStruct((4096,), jnp.float32)

    step = lambda w, x, u: jnp.sin(w * x) + u  # noqa: E731

    def temporary(k: int) -> int:
        end = lambda w, x: jnp.sum(truncated_backprop(step, w, x, u, keep_last=k))  # noqa: E731
        return jax.jit(jax.grad(end)).lower(shape, shape).compile().memory_analysis().temp_size_in_bytes

    assert temporary(1) < 8 * 4 * 4096 and temporary(64) >= 64 * 4 * 4096


def test_the_last_step_again(x64: None) -> None:
    """Of a quadratic reward: n draws of noise, no gradient by the sample; the sum is n times the mean."""
    x0, key = normal(0, 3), jax.random.key(1)
    noise = jax.vmap(lambda k: jax.random.normal(k, (3,), jnp.float64))(jax.random.split(key, 4))
    own = {"alpha": 0.9, "sigma": 0.5, "num_samples": 4}

    def value(p: Any, x0: Any, reduction: str = "mean") -> Any:
        reward = lambda x: jnp.sum(x**2)  # noqa: E731
        return low_variance_last_step(lambda p, x: p * x, reward, p, x0, key, reduction=reduction, **own)

    x1 = 0.9 * np.asarray(x0)[None] + 0.5 * np.asarray(noise)
    dp, dx = jax.grad(value, (0, 1))(1.7, x0)
    np.testing.assert_allclose(dp, 2 * 1.7 * np.mean(np.sum(x1**2, axis=1)), rtol=1e-13)
    assert not np.asarray(dx).any()
    np.testing.assert_allclose(value(1.7, x0, "sum"), 4 * value(1.7, x0), rtol=1e-13)


def test_bad_input() -> None:
    p, u = {"a": 1.0, "w": 1.0}, np.ones(3, np.float32)
    with pytest.raises(ValueError, match="keep_last must be an integer >= 1 and <= 3, got 4"):
        last(p, 4, u)
    with pytest.raises(ValueError, match="xs must be arrays with one leading axis"):
        truncated_backprop(linear, p, 1.0, {"a": u, "b": u[:2]}, keep_last=1)
    with pytest.raises(ValueError, match="max_cut must leave a cut from 1 to 2"):
        random_truncated_backprop(linear, p, 1.0, u, 0, min_cut=2, max_cut=2)
    with pytest.raises(ValueError, match="reward must be a scalar"):
        low_variance_last_step(lambda p, x: x, lambda x: x, p, u, 0, alpha=1.0, sigma=1.0)
