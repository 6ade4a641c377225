"""Weights of pairs in flow matching (W-CFM, 2025)."""

import jax
import numpy as np
import pytest

from gradkit.batches import effective_sample_size, gibbs_pair_weights
from tests.papers.replay import normal


def test_weights_and_their_limits(x64: None) -> None:
    """The definition; a large epsilon gives 1; a small one the nearest pair alone, though every exponential is 0."""
    x, y = normal(0, 6, 2, 3), normal(1, 6, 2, 3)
    cost = np.sum((np.asarray(x) - np.asarray(y)) ** 2, axis=(1, 2))
    want = 6 * np.exp(-cost / 2.5) / np.exp(-cost / 2.5).sum()
    np.testing.assert_allclose(gibbs_pair_weights(x, y, 2.5), want, rtol=1e-13)
    np.testing.assert_allclose(gibbs_pair_weights(x, y, np.inf), np.ones(6))
    one = np.asarray(gibbs_pair_weights(x, y, 1e-6))
    assert one[cost.argmin()] == 6 and effective_sample_size(one) == 1


def test_the_sum_is_over_all_replicas(x64: None) -> None:
    x, y = normal(0, 6, 3), normal(1, 6, 3)
    shards = jax.vmap(lambda x, y: gibbs_pair_weights(x, y, 2.0, axis_name="i"), axis_name="i")
    got = shards(x.reshape(2, 3, 3), y.reshape(2, 3, 3)).reshape(-1)
    np.testing.assert_allclose(got, gibbs_pair_weights(x, y, 2.0), rtol=1e-13)


def test_bad_input() -> None:
    x = np.ones((2, 2), np.float32)
    with pytest.raises(ValueError, match="x and y must have one shape"):
        gibbs_pair_weights(x, x[:1], 1.0)
    with pytest.raises(ValueError, match="epsilon must be"):
        gibbs_pair_weights(x, x, 0.0)
