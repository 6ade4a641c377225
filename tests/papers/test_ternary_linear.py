"""Ternary linear layers (Nielsen, Schneider-Kamp, 2024)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.layers import ternary_linear, ternary_quantize
from tests.papers.replay import normal


@pytest.mark.parametrize("measure", ["median", "mean"])
def test_codes_and_their_scale(measure: str, x64: None) -> None:
    """The lower median of an even number; a factor of w is one of its scale alone, here a power of two."""
    w = np.asarray(normal(0, 6, 4))
    codes, scale = (np.asarray(x) for x in ternary_quantize(w, measure=measure))
    assert set(np.unique(codes)) == {-1, 0, 1}
    want = np.sort(np.abs(w).reshape(-1))[11] if measure == "median" else np.abs(w).mean()
    np.testing.assert_allclose(scale, want, rtol=1e-14)
    np.testing.assert_array_equal(codes, np.clip(np.round(w / scale), -1, 1))
    codes_8, scale_8 = ternary_quantize(8 * w, measure=measure)
    np.testing.assert_array_equal(codes_8, codes)
    assert scale_8 == 8 * scale


def test_the_gradient_is_the_one_at_the_rounded_weights(x64: None) -> None:
    """Also of entries whose codes are clipped; a share of the quantization is between both, in value and gradient."""
    w, target = normal(0, 5, 3), normal(1, 5, 3)

    def loss(w, lam):
        codes, scale = ternary_quantize(w, straight_through=lam)
        return jnp.sum((codes * scale - target) ** 2)

    gradient = jax.jit(jax.grad(loss))
    codes, scale = ternary_quantize(w)
    rounded = np.asarray(codes * scale)
    assert (np.abs(w) > 2 * scale).any()
    for lam in (0.0, 0.3, 1.0):
        at = (1 - lam) * np.asarray(w) + lam * rounded
        np.testing.assert_allclose(gradient(w, lam), 2 * (at - np.asarray(target)), rtol=1e-12, atol=1e-13)


def test_again_is_the_same_only_for_equal_sizes(x64: None) -> None:
    """With the mean as measure: weights of one size are their own codes; others have a smaller mean after rounding."""
    w = np.array([[2.0, -2.0], [-2.0, 2.0]])
    codes, scale = ternary_quantize(w, measure="mean")
    np.testing.assert_array_equal(codes * scale, w)
    codes, scale = ternary_quantize(normal(0, 6, 4), measure="mean")
    scale_again = ternary_quantize(codes * scale, measure="mean")[1]
    assert (np.asarray(codes) == 0).any() and scale_again < scale


def test_stacked_matrices_have_scales_of_their_own(x64: None) -> None:
    w = normal(0, 3, 4, 5)
    codes, scale = ternary_quantize(w, batch_axes=1)
    assert scale.shape == (3,)
    for i in range(3):
        own, s = ternary_quantize(w[i])
        np.testing.assert_array_equal(codes[i], own)
        assert scale[i] == s


def test_the_bias_is_behind_the_scales(x64: None) -> None:
    """Whatever the size of weights and inputs; a row of zeros gives the bias."""
    x, w, b = normal(0, 4, 6), normal(1, 6, 3), jnp.array([1.0, -2.0, 3.0])
    for factor in (1.0, 1e-3):
        got = ternary_linear(x, factor * w, b) - ternary_linear(x, factor * w)
        np.testing.assert_allclose(got, np.broadcast_to(b, (4, 3)), rtol=1e-12)
    np.testing.assert_array_equal(ternary_linear(jnp.zeros((1, 6)), w, b)[0], b)
    # Without quantization: a linear layer behind a layer normalization.
    h = np.asarray(x) - np.asarray(x).mean(-1, keepdims=True)
    h = h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(ternary_linear(x, w, straight_through=0.0), h @ np.asarray(w), rtol=1e-12, atol=1e-13)


def test_bad_input() -> None:
    w = np.ones((2, 2), np.float32)
    for name, bad in (("measure", "max"), ("eps", 0.0), ("straight_through", 1.5), ("batch_axes", -1)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            ternary_quantize(w, **{name: bad})
    with pytest.raises(ValueError, match="w must have more than batch_axes=2 axes"):
        ternary_quantize(w, batch_axes=2)
    with pytest.raises(ValueError, match="activation_bits must be"):
        ternary_linear(w, w, activation_bits=1)
