"""SVAG (Malladi et al., 2022)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.batches import sqrt_scaling
from gradkit.gradients import svag
from tests.papers.replay import assert_equal, normal


def test_weights(x64: None) -> None:
    """They add up to 1 and their squares to l^2; with l = 1 it is the second gradient."""
    one, zero = jnp.ones(()), jnp.zeros(())
    for l in (1.0, 2, 7.5, 1e3):  # noqa: E741
        a, b = svag(one, zero, l), svag(zero, one, l)
        # Weights of size l cancel in their sum.
        np.testing.assert_allclose(np.array([a + b, (a**2 + b**2) / l**2]), 1, rtol=1e-15 * 8 * max(l, 1))
    x, y = ({"a": normal(s, 3), "b": normal(s + 1, 2)} for s in (0, 2))
    assert_equal(svag(x, y, 1), y, rtol=0, atol=0)
    assert_equal(svag(x, x, 1e6), x, rtol=0, atol=0)


def test_mean_is_kept_and_covariance_grows(x64: None) -> None:
    n, l = 100_000, 3.0  # noqa: E741
    g1, g2 = (0.5 + normal(s, n, 2) @ jnp.array([[1.0, 0.7], [0.0, 0.4]]) for s in (0, 1))
    g = np.asarray(jax.jit(lambda a, b: svag(a, b, l))(g1, g2))
    want = 9 * np.array([[1.0, 0.7], [0.7, 0.49 + 0.16]])
    # Four standard errors: of a mean sqrt(9 / n), of a covariance below sqrt(2 / n) times the largest variance.
    np.testing.assert_allclose(g.mean(0), 0.5, atol=4 * 3 / np.sqrt(n))
    np.testing.assert_allclose(np.cov(g.T), want, atol=4 * 9 * np.sqrt(2 / n))


def test_goes_with_square_root_scaling(x64: None) -> None:
    """Pure noise over l^2 steps at the rate / l moves like one step: by rate^2, whatever l."""
    for l in (2.0, 5.0):  # noqa: E741
        new = sqrt_scaling({"learning_rate": 0.1, "b2": 0.99, "eps": 1e-8}, 1 / l**2)
        assert new["learning_rate"] == pytest.approx(0.1 / l) and new["eps"] == pytest.approx(1e-8 * l)
        assert 1 - new["b2"] == pytest.approx(0.01 / l**2)
    traced = jax.vmap(lambda many: svag(jnp.zeros(()), jnp.ones(()), many))(jnp.array([1.0, 5.0]))
    assert_equal(traced, np.array([1.0, 4.0]))


def test_dtypes_and_bad_input() -> None:
    low = svag(jnp.ones(2, jnp.bfloat16), jnp.ones(2, jnp.bfloat16), 2.0)
    assert low.dtype == jnp.bfloat16
    x = {"a": jnp.ones(2)}
    for bad in (0.5, float("nan"), "high"):
        with pytest.raises(ValueError, match=r"\bl must be"):
            svag(x, x, bad)
    with pytest.raises(ValueError, match="has shape"):
        svag(x, {"a": jnp.ones(3)}, 2.0)
