"""Signal propagation plots (Brock, De, Smith, 2021)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from gradkit.diagnostics import signal_propagation
from tests.papers.replay import normal


def test_variance_grows_by_one_per_block_and_begins_again_at_a_transition(x64: None) -> None:
    """Branches of unit variance that are orthogonal over the examples, as columns of a Hadamard matrix are: exactly."""
    signs = scipy.linalg.hadamard(8).astype(float)
    branch = lambda i: jnp.asarray(signs[:, i : i + 1])  # noqa: E731

    def identity(i: int) -> Any:
        return lambda x: (x + branch(i), branch(i))

    def transition(i: int) -> Any:
        return lambda x: (x / jnp.std(x) + branch(i), branch(i))

    blocks = [identity(2), identity(3), transition(4), identity(5), lambda x: x + 3]
    found = signal_propagation(blocks, branch(1))
    np.testing.assert_allclose(found.variance, [2, 3, 2, 3, 3], rtol=1e-13)
    np.testing.assert_allclose(found.branch_variance, [1, 1, 1, 1, np.nan])
    np.testing.assert_allclose(found.squared_mean, [0, 0, 0, 0, 9], atol=1e-13)


def test_channels_are_averaged_behind_their_moments(x64: None) -> None:
    x = normal(0, 4, 3, 5)
    for axis, others in ((-1, (0, 1)), (1, (0, 2))):
        found = signal_propagation([lambda x: x], x, channel_axis=axis)
        np.testing.assert_allclose(found.squared_mean[0], np.mean(np.mean(x, axis=others) ** 2), rtol=1e-13)
        np.testing.assert_allclose(found.variance[0], np.mean(np.var(x, axis=others)), rtol=1e-13)


def test_bad_input() -> None:
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="blocks must be functions, got none"):
        signal_propagation([], x)
    with pytest.raises(ValueError, match="channel_axis must be an axis"):
        signal_propagation([lambda x: x], x, channel_axis=2)
