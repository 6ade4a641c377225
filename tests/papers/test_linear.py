"""Weights that do not look at gradients."""

import jax
import numpy as np
import pytest

from gradkit.aggregation import constant, mean, random_weighting, sum
from tests.papers.stacks import aggregate, draw, runner


def test_mean_sum_and_weights_of_ones_own(x64: None) -> None:
    J = draw(0)
    np.testing.assert_allclose(aggregate(mean(), J), J.mean(0), rtol=1e-14)
    np.testing.assert_allclose(aggregate(sum(), J), J.sum(0), rtol=1e-14)
    w = np.array([2.0, 0.0, -1.0, 0.5])
    np.testing.assert_allclose(aggregate(constant(w), J), w @ J, rtol=1e-13, atol=1e-15)


def test_random_weights_are_a_softmax_of_normal_numbers(x64: None, key: jax.Array) -> None:
    """On average the mean; the logarithms of two weights differ by a normal number of variance 2."""
    run, state, rows = runner(random_weighting(key=key), 4, 4), None, []
    for _ in range(400):
        w, state = run(np.eye(4), state)
        rows.append(w)
    w = np.array(rows)
    np.testing.assert_allclose(w.sum(1), 1, rtol=1e-6)  # a softmax in float32
    assert (w > 0).all()
    # Means of 400 numbers of deviation 0.18, and a variance whose relative deviation is sqrt(2 / 400): five of each.
    np.testing.assert_allclose(w.mean(0), 0.25, atol=5 * 0.18 / 20)
    np.testing.assert_allclose(np.log(w[:, 0] / w[:, 1]).var(), 2, rtol=5 * np.sqrt(2 / 400))


def test_bad_input() -> None:
    for bad in (None, 1.0, [[1.0]], ["a"], [np.nan]):
        with pytest.raises(ValueError, match="weights must be"):
            constant(bad)
    with pytest.raises(ValueError, match=r"constant: weights has shape \(2,\), and 4 gradients came"):
        aggregate(constant([1.0, 2.0]), draw(0).astype(np.float32))
    with pytest.raises(ValueError, match="random_weighting needs a random key"):
        aggregate(random_weighting(), draw(0).astype(np.float32))
