"""Nuclear norms of gradients by layer (Li et al., 2024)."""

import numpy as np
import pytest

from gradkit.diagnostics import layer_gradient_profile, profile_difference
from tests.papers.replay import normal


def test_norms_and_their_differences(x64: None) -> None:
    """Of rank one the nuclear norm is Frobenius'; of orthogonal matrices times c it is c times the rank."""
    u, v = np.asarray(normal(0, 4, 5)), np.asarray(normal(1, 4, 3))
    found = layer_gradient_profile({"q": u[:, :, None] * v[:, None], "o": 2 * np.eye(3)[None]})
    want = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
    np.testing.assert_allclose(found.nuclear_norm["q"], want, rtol=1e-12)
    np.testing.assert_allclose(found.mean_absolute_difference["q"], np.abs(want[1:] - want[:-1]).mean(), rtol=1e-11)
    np.testing.assert_allclose(found.nuclear_norm["o"], [6], rtol=1e-13)
    assert found.mean_absolute_difference["o"] == 0


def test_the_difference_is_relative_to_the_second(x64: None) -> None:
    g = normal(0, 3, 4, 2)
    a, b = layer_gradient_profile(g), layer_gradient_profile(4 * g)
    np.testing.assert_allclose(profile_difference(a, b), np.full(3, 0.75), rtol=1e-12)
    np.testing.assert_allclose(profile_difference(b, a), np.full(3, 3.0), rtol=1e-12)
    zero = layer_gradient_profile(0 * g)
    assert profile_difference(zero, zero).tolist() == [0, 0, 0]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="the leaf 'q' of grads must be floating point with 3 axes"):
        layer_gradient_profile({"q": np.ones((2, 2), np.float32)})
    one, two = (layer_gradient_profile(np.ones((n, 2, 2), np.float32)) for n in (1, 2))
    with pytest.raises(ValueError, match="a and b must be of one model"):
        profile_difference(one, two)
