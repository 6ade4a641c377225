"""Hooks on the cotangent, and pixel-wise clipping (Pan et al., 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.gradients import clip_pixels, clip_pixelwise, map_cotangent
from tests.papers.replay import assert_equal, normal

NORMS = {
    "l2": lambda c, axis: np.linalg.norm(c, axis=axis, keepdims=True),
    "linf": lambda c, axis: np.abs(c).max(axis, keepdims=True),
}


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("axis", [-1, 1])
def test_pixels_keep_their_direction_and_are_within_the_limit(norm: str, axis: int, x64: None) -> None:
    c = np.array(normal(0, 2, 3, 5, 4))
    c[0, :, 0, :] = 0.0  # pixels, or parts of them, without gradient
    got = np.asarray(clip_pixels(c, 0.9, channel_axis=axis, norm=norm))
    length = NORMS[norm](c, axis)
    want = c * np.minimum(1, 0.9 / np.where(length == 0, 1, length))
    assert_equal(got, want)
    assert (length > 0.9).any() and (length < 0.9).any()
    assert (NORMS[norm](got, axis) <= 0.9 * (1 + 1e-12)).all()
    assert_equal(clip_pixels(c, np.inf, channel_axis=axis, norm=norm), c)


def test_the_gradient_is_clipped_by_hand_and_the_image_is_not_touched(x64: None) -> None:
    """Also with a traced threshold, under jit, vmap and scan; a threshold has no gradient."""
    x = normal(0, 6, 3)
    loss = lambda y: jnp.sum(jnp.sin(3 * y) * y)  # noqa: E731
    hooked = lambda x, t: loss(clip_pixelwise(x, t))  # noqa: E731
    assert_equal(clip_pixelwise(x), x)
    want = {t: clip_pixels(jax.grad(loss)(x), t) for t in (0.1, 1.0)}
    assert_equal(jax.jit(jax.grad(hooked))(x, 0.1), want[0.1])
    many = jax.vmap(jax.grad(hooked), (None, 0))(x, jnp.array([0.1, 1.0]))
    assert_equal(many, jnp.stack([*want.values()]))
    _, scanned = jax.lax.scan(lambda carry, t: (carry, jax.grad(hooked)(x, t)), 0, jnp.array([0.1, 1.0]))
    assert_equal(scanned, many)
    assert float(jax.grad(hooked, argnums=1)(x, 0.1)) == 0.0


def test_the_chain_rule_goes_on_behind_the_hook(x64: None) -> None:
    """What is clipped is the gradient of the image, not that of the parameters that made it."""
    w, A = normal(0, 4), normal(1, 6, 3, 4)
    image = lambda w: jnp.einsum("pcw,w->pc", A, w)  # noqa: E731
    got = jax.grad(lambda w: jnp.sum(jnp.exp(clip_pixelwise(image(w), 0.2))))(w)
    assert_equal(got, jnp.einsum("pcw,pc->w", A, clip_pixels(jnp.exp(image(w)), 0.2)))


@pytest.mark.parametrize(("scale", "dtype"), [(1e-30, np.float32), (1e30, np.float32), (1.0, jnp.bfloat16)])
def test_small_large_and_short_numbers(scale: float, dtype: Any) -> None:
    """Squares of 1e-30 are 0 in float32, those of 1e30 are infinite; bfloat16 is clipped in float32."""
    c = (scale * jnp.array([[3.0, 4.0]], jnp.float32)).astype(dtype)
    got = clip_pixels(c, 0.5 * scale)
    assert got.dtype == dtype
    np.testing.assert_allclose(np.asarray(got, np.float64) / scale, [[0.3, 0.4]], rtol=2 * float(jnp.finfo(dtype).eps))


def test_any_function_of_the_cotangent(x64: None) -> None:
    hook = map_cotangent(lambda c, k: jnp.sign(c) * k)
    x = normal(0, 5)
    assert_equal(jax.grad(lambda x: jnp.sum(jnp.cos(hook(x, 2.0))))(x), -2 * jnp.sign(jnp.sin(x)))
    assert_equal(hook(x, 2.0), x)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="f must be callable"):
        map_cotangent(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"f must return float32 of shape \(2,\), got float32 of shape \(\)"):
        jax.grad(lambda x: jnp.sum(map_cotangent(jnp.sum)(x)))(jnp.ones(2))
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"threshold must be in \(0, inf\]"):
            clip_pixelwise(jnp.ones((2, 3)), bad)
    with pytest.raises(ValueError, match="norm must be one of"):
        clip_pixelwise(jnp.ones((2, 3)), norm="l1")
    with pytest.raises(ValueError, match="channel_axis must be an integer >= -2"):
        clip_pixelwise(jnp.ones((2, 3)), channel_axis=-3)
    with pytest.raises(ValueError, match="must be floating point and have axis 2"):
        clip_pixels(jnp.ones((2, 3)), channel_axis=2)
