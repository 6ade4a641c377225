"""Effective ranks, and the rank that follows them."""

import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.parallel import adaptive_rank, effective_rank


@pytest.mark.parametrize("kind", ["participation", "entropy"])
def test_equal_singular_values_count_and_scale_does_not(kind: str) -> None:
    U = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    for r in (1, 3, 6):
        for scale in (1e-6, 1e6):
            M = jnp.asarray(scale * U[:, :r] @ U[:r], jnp.float32)
            np.testing.assert_allclose(effective_rank(M, kind=kind), r, rtol=1e-3)
    assert effective_rank(jnp.zeros((2, 3)), kind=kind) == 0


def test_against_the_definitions() -> None:
    M = jnp.diag(jnp.array([3.0, 1.0]))
    np.testing.assert_allclose(effective_rank(M), 16 / 10, rtol=1e-6)
    p = np.array([0.75, 0.25])
    np.testing.assert_allclose(effective_rank(M, kind="entropy"), np.exp(-(p * np.log(p)).sum()), rtol=1e-6)
    assert effective_rank(jnp.stack([M, M])).shape == (2,)


def test_the_rank_is_one_of_a_few_and_falls_with_what_is_needed() -> None:
    ranks = [4, 16, 64]
    assert adaptive_rank([], ranks) == 64
    assert adaptive_rank([100.0], ranks) == 64
    assert adaptive_rank([60.0, 10.0, 10.0], ranks, window_size=2) == 16
    assert adaptive_rank([60.0, 10.0, 10.0], ranks, window_size=3) == 64
    with pytest.raises(ValueError, match="ranks must have an integer"):
        adaptive_rank([1.0], [])
    with pytest.raises(ValueError, match="M must be real matrices"):
        effective_rank(jnp.ones(3))
