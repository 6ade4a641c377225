"""Multiplicative noise on gradients of examples (Hoffer, Hubara, Soudry, 2017)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.gradients import multiply_by_noise
from tests.papers.replay import assert_equal, normal


def test_the_mean_is_kept_and_the_covariance_is_that_of_the_examples(x64: None) -> None:
    """Over 20000 keys: mean of g_n, and covariance std^2 / B^2 sum g_n g_n^T, across leaves too."""
    B, std, keys = 6, 0.7, jax.random.split(jax.random.key(1), 20000)
    g = {"a": normal(0, B, 2), "b": normal(1, B, 1, 1)}
    drawn = jax.jit(jax.vmap(lambda k: multiply_by_noise(k, g, std)))(keys)
    flat = np.concatenate([drawn["a"], drawn["b"].reshape(-1, 1)], 1)
    rows = np.concatenate([g["a"], g["b"].reshape(B, 1)], 1)
    want = std**2 / B**2 * rows.T @ rows
    deviation = np.sqrt(np.diag(want))
    # Five standard errors: deviation / sqrt(20000), and for entries of the covariance sqrt(2 / 20000) at most.
    assert (np.abs(flat.mean(0) - rows.mean(0)) < 5 * deviation / 20000**0.5).all()
    assert (np.abs(np.cov(flat.T) - want) < 5 * (2 / 20000) ** 0.5 * np.outer(deviation, deviation)).all()


def test_no_noise_is_the_mean_and_dtypes_stay() -> None:
    g = {"w": jnp.arange(6.0).reshape(3, 2), "b": jnp.ones((3,), jnp.bfloat16), "none": None}
    got = multiply_by_noise(jax.random.key(0), g, 0.0)
    assert_equal(got["w"], np.array([2.0, 3.0]), rtol=1e-6)
    assert got["b"].dtype == jnp.bfloat16 and got["b"].shape == () and got["none"] is None


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="std must be in"):
        multiply_by_noise(jax.random.key(0), jnp.ones((2, 3)), -0.1)
    with pytest.raises(ValueError, match="one leading axis of examples"):
        multiply_by_noise(jax.random.key(0), [jnp.ones((2, 3)), jnp.ones(3)], 0.1)
