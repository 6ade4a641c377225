"""The gain of a sublayer, its largest singular value (Fan et al., 2025)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.diagnostics import sublayer_gain
from tests.papers.replay import normal


def test_is_the_largest_singular_value(x64: None) -> None:
    """Of matrices and of stacks of them, whatever their size; never above it."""
    # Singular values 1, 1/2, 1/3, ...: an error of 2^-200.
    u, _, v = np.linalg.svd(np.asarray(normal(0, 3, 6, 4)), full_matrices=False)
    scale = np.array([1.0, 1e-200, 1e100])
    w = u * (1 / np.arange(1, 5)) @ v * scale[:, None, None]
    got = jax.jit(sublayer_gain)(w)
    np.testing.assert_allclose(got, scale, rtol=1e-12)
    np.testing.assert_allclose(sublayer_gain(w[0].T), 1.0, rtol=1e-12)
    square = np.asarray(normal(1, 40, 40))
    exact = np.linalg.norm(square, 2)
    assert 0.5 * exact < sublayer_gain(square, steps=2) < exact


def test_zero_and_narrow_matrices() -> None:
    assert sublayer_gain(jnp.zeros((3, 2))) == 0
    one = sublayer_gain(jnp.full((4, 4), 0.5, jnp.bfloat16))
    assert one.dtype == jnp.float32 and one == 2
    # The square of an entry is no float32.
    np.testing.assert_allclose(sublayer_gain(jnp.full((4, 4), 1e-30)), 4e-30, rtol=1e-6)


@pytest.mark.parametrize("w", [jnp.ones(3), jnp.ones((2, 2), int), jnp.ones((2, 2), complex)])
def test_bad_input(w: jax.Array) -> None:
    with pytest.raises(ValueError, match="w must be floating point"):
        sublayer_gain(w)
    with pytest.raises(ValueError, match="steps must be"):
        sublayer_gain(jnp.ones((2, 2)), steps=0)
