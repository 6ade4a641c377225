"""Training the hardest minibatches again (Sahayam et al., 2023)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.batches import select_hard_batches


def test_the_largest_losses_by_falling_loss_and_ties_in_order() -> None:
    losses = np.array([2.0, 5.0, 1.0, 5.0, 2.0, 0.0, 2.0])
    want = np.argsort(-losses, kind="stable")
    for k in range(1, 8):
        got = jax.jit(lambda x, k=k: select_hard_batches(x, k / 7))(jnp.asarray(losses))
        np.testing.assert_array_equal(got, want[:k])
        assert got.dtype == jnp.int32


def test_all_of_them_are_a_permutation() -> None:
    losses = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    assert sorted(select_hard_batches(losses, 1.0).tolist()) == list(range(50))
    assert sorted(select_hard_batches(np.zeros(50), 1).tolist()) == list(range(50))


def test_the_number_is_rounded_up_and_not_by_a_rounding() -> None:
    """0.07 * 100 is 7.000000000000001 in float64, and 7 of 100 are meant."""
    for fraction, n, k in ((0.07, 100, 7), (0.1, 30, 3), (0.5, 5, 3), (0.01, 5, 1), (0.55, 100, 55)):
        assert select_hard_batches(jnp.zeros(n), fraction).shape == (k,)


def test_bad_input() -> None:
    for fraction in (0.0, -1, 1.5, float("nan"), "half"):
        with pytest.raises(ValueError, match="fraction must be"):
            select_hard_batches(jnp.ones(3), fraction)
    for losses in (jnp.ones((2, 2)), jnp.ones(0), jnp.ones(2, bool), jnp.ones(())):
        with pytest.raises(ValueError, match="losses must be"):
            select_hard_batches(losses, 0.5)
