"""Weights by duration (Yang et al., 2025)."""

import jax
import numpy as np
import pytest

from gradkit.batches import duration_weights


def test_what_a_fixed_time_returns_has_the_synchronous_mean(x64: None) -> None:
    """Two actions of durations 1 and 5, asked for equally often by workers that are always busy: in 30 units of time
    each half of the workers returns 30 fast ones and 6 slow ones."""
    gradients = np.array([[1.0, 2.0], [-3.0, 7.0]])
    d = np.array([1.0] * 30 + [5.0] * 6)
    returned = np.repeat(gradients, [30, 6], axis=0)
    weighted = np.mean(np.asarray(duration_weights(d))[:, None] * returned, axis=0)
    np.testing.assert_allclose(weighted, gradients.mean(axis=0), rtol=1e-14)


def test_the_mean_is_over_all_replicas() -> None:
    d = np.array([[1.0, 2.0], [4.0, 5.0]], np.float32)
    got = jax.vmap(lambda d: duration_weights(d, axis_name="i"), axis_name="i")(d)
    np.testing.assert_allclose(got, d / 3, rtol=1e-6)
    assert duration_weights(d, normalize=False).tolist() == d.tolist()


def test_a_duration_is_positive() -> None:
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="durations must be > 0"):
            duration_weights(np.array([1.0, bad], np.float32))
