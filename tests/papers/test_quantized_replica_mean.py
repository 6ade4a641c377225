"""The mean in bytes: its two roundings, equal bits, and what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.parallel import quantized_replica_mean
from gradkit.parallel.quantized_replica_mean import decode_blocks, encode_blocks


def mean(x: Any, **given: Any) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(lambda x: quantized_replica_mean(x, **given), axis_name="replica"))(x))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("replicas", [1, 3, 8])
def test_the_error_is_that_of_two_roundings(bits: int, replicas: int) -> None:
    """Of a mean of numbers of size s at most, each rounding is half of s / L or less; chunks are not full."""
    x = np.random.default_rng(bits + replicas).uniform(-1, 1, (replicas, 37)).astype(np.float32)
    got = mean(jnp.asarray(x), bits=bits, block=6)
    assert np.abs(got - x.mean(0)).max() <= 2 * 0.5 / (2 ** (bits - 1) - 1) + 1e-6
    assert np.abs(got - x.mean(0)).max() > 0
    np.testing.assert_array_equal(got, np.broadcast_to(got[:1], got.shape))


def test_against_numpy() -> None:
    """Two replicas, blocks of two entries: the equations entry by entry."""
    x = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)

    def rounded(block: np.ndarray) -> np.ndarray:
        scale = np.float32(np.abs(block).max() / 127)
        return np.round(block / scale) * scale

    want = np.zeros(6, np.float32)
    for start, stop in ((0, 2), (2, 4), (4, 6)):
        want[start:stop] = rounded(np.mean([rounded(row[start:stop]) for row in x], axis=0, dtype=np.float32))
    # A quotient that is a rounding away from a half may go to the other side: not with these numbers.
    np.testing.assert_allclose(mean(jnp.asarray(x), block=2)[0], want, rtol=0, atol=1e-6)


def test_a_small_leaf_beside_a_large_one_has_its_own_scale() -> None:
    x = {"large": jnp.full((4, 3), 1e6), "small": jnp.full((4, 3), 1e-6)}
    got = jax.vmap(quantized_replica_mean, axis_name="replica")(x)
    np.testing.assert_allclose(got["small"], 1e-6, rtol=1e-2)


def test_sums_never_wrap_around() -> None:
    """Eight replicas that all say 127 steps: a sum of int8 would be -8."""
    np.testing.assert_array_equal(mean(jnp.full((8, 5), 127.0)), 127.0)


def test_zeros_and_what_is_not_finite() -> None:
    np.testing.assert_array_equal(mean(jnp.zeros((2, 9))), 0.0)
    for bad in (jnp.nan, jnp.inf):
        got = mean(jnp.ones((2, 8)).at[1, 0].set(bad), block=2)
        assert not np.isfinite(got[:, 0]).any()
        np.testing.assert_array_equal(got[:, 4:], 1.0)


def test_four_bits_are_two_to_a_byte() -> None:
    x = jnp.array([[7.0, -7.0, 3.0, 0.0]])
    q, scale = encode_blocks(x, 4)
    assert q.shape == (1, 2) and q.dtype == jnp.uint8
    np.testing.assert_array_equal(decode_blocks(q, scale, 4, jnp.float32), x)


def test_dtypes_come_back_and_bad_arguments_are_refused() -> None:
    assert mean(jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="the leaf 'n' has dtype int32"):
        jax.vmap(quantized_replica_mean, axis_name="replica")({"n": jnp.ones((2, 3), jnp.int32)})
    with pytest.raises(ValueError, match="bits must be one of 8, 4"):
        mean(jnp.ones((2, 3)), bits=2)
    with pytest.raises(ValueError, match="there is no axis 'replica' here"):
        quantized_replica_mean(jnp.ones(3))
