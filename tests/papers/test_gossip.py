"""Gossip keeps means; a ring is what its matrix says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.parallel import gossip_mix, ring_mixing


@pytest.mark.parametrize("replicas", [1, 2, 3, 6])
def test_a_ring_is_doubly_stochastic_and_mixes_as_its_matrix(replicas: int) -> None:
    M = ring_mixing(replicas)
    np.testing.assert_allclose(M.sum(0), 1)
    np.testing.assert_array_equal(M, M.T)
    x = np.random.default_rng(0).standard_normal((replicas, 2)).astype(np.float32)
    got = jax.vmap(gossip_mix, axis_name="replica")(jnp.asarray(x))
    np.testing.assert_allclose(got, M @ x, atol=1e-6)


def test_narrow_leaves_are_mixed_in_float32() -> None:
    x = jnp.array([1.0, 1.0, 1 + 2.0**-7], jnp.bfloat16)
    got = jax.vmap(gossip_mix, axis_name="replica")(x)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got.astype(jnp.float32), 1.0)  # 1 + 2^-7 / 3, rounded once
