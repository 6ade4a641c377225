"""ShiftQuant, and normalization by absolute deviations (Guo et al., 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.layers import l1_normalize, shift_quantize
from gradkit.layers.shift_quantize import shift_codes
from tests.papers.replay import assert_equal, normal

DRAWS = 4000


def gradients() -> jax.Array:
    return normal(0, 7, 5) * jnp.array([[8.0, 3.0, 1.0, 0.1, 0.0]])


def scales(g: Any, bits: int, num_groups: int) -> np.ndarray:
    r = np.abs(g).max(0)
    ratio = np.where(r > 0, r.max() / np.where(r > 0, r, 1), np.inf)
    k = np.clip(np.floor(np.log2(np.minimum(ratio, 1e30))), 0, num_groups - 1)
    return r.max() / 2**k / (2 ** (bits - 1) - 1)


def test_the_error_is_below_the_scale_and_its_mean_is_zero(x64: None) -> None:
    scale = scales(np.asarray(gradients()), 4, 4)
    draw = jax.jit(jax.vmap(lambda key: shift_quantize(gradients(), key)))
    got, g = np.asarray(draw(jax.random.split(jax.random.key(0), DRAWS))), np.asarray(gradients())
    assert np.all(np.abs(got - g) < scale[None] * (1 + 1e-12))
    assert np.all(np.abs(got.mean(0) - g) <= 5 * got.std(0) / np.sqrt(DRAWS) + 1e-12)
    assert len(np.unique(scale)) == 3  # two channels at each end share theirs


def test_groups_never_have_a_larger_variance_than_one_scale(x64: None) -> None:
    g, keys = gradients(), jax.random.split(jax.random.key(1), DRAWS)
    few, one = (
        np.asarray(jax.jit(jax.vmap(lambda key, n=n: shift_quantize(g, key, num_groups=n)))(keys)) for n in (4, 1)
    )
    assert np.all(few.var(0).sum(0) <= one.var(0).sum(0) * 1.05)
    assert few.var(0)[:, 3].sum() < 0.1 * one.var(0)[:, 3].sum()
    q, k, R = shift_codes(g, jax.random.key(2), 4, -1, 1)
    np.testing.assert_array_equal(k, 0)
    assert_equal(shift_quantize(g, jax.random.key(2), num_groups=1), q * R / 7)


def test_a_scale_is_a_shift_to_the_left(x64: None) -> None:
    """Integers of 4 bits, shifted by num_groups - 1 - k, times one number for the tensor."""
    g, key = gradients(), jax.random.key(3)
    q, k, R = (np.asarray(x) for x in shift_codes(g, key, 4, -1, 4))
    assert np.abs(q).max() <= 7 and np.all(q == np.round(q))
    shifted = q.astype(int) << (3 - k.astype(int))
    assert_equal(shift_quantize(g, key), shifted * (R / 8 / 7))


def test_powers_of_two_are_groups_of_their_own(x64: None) -> None:
    g = jnp.asarray(2.0 ** -np.arange(6.0))[None] * 3
    for scale in (1.0, 0.1, 7e10):
        _, k, _ = shift_codes(scale * g, jax.random.key(0), 4, -1, 4)
        np.testing.assert_array_equal(k[0], [0, 1, 2, 3, 3, 3])


def test_normalization_by_absolute_deviations(x64: None) -> None:
    x = 3 * normal(0, 4, 5) + 2
    y = np.asarray(l1_normalize(x, axis=(0, 1), eps=1e-12))
    np.testing.assert_allclose((y.mean(), np.abs(y).mean()), (0, 1), atol=1e-11)
    d = np.asarray(x) - np.asarray(x).mean(0)
    assert_equal(l1_normalize(x, axis=0), d / (np.abs(d).mean(0) + 1e-5))
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(l1_normalize(x) ** 2))(jnp.ones((2, 3)))))


def test_short_numbers_and_bad_input() -> None:
    assert shift_quantize(jnp.ones((2, 3), jnp.bfloat16), 0).dtype == jnp.bfloat16
    np.testing.assert_array_equal(shift_quantize(jnp.zeros((2, 3)), 0), 0)
    for name, bad in (("bits", 1), ("num_groups", 0), ("axis", 2)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            shift_quantize(jnp.ones((2, 3)), 0, **{name: bad})
    with pytest.raises(ValueError, match="axis must be"):
        l1_normalize(jnp.ones(3), axis=1)
    with pytest.raises(ValueError, match="eps must be"):
        l1_normalize(jnp.ones(3), eps=0.0)
