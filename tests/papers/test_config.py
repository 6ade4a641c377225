"""ConFIG: equal cosines."""

import numpy as np
import pytest

from gradkit.aggregation import config
from tests.papers.stacks import aggregate, draw


def test_all_cosines_are_equal_and_the_length_is_the_sum_of_projections(x64: None) -> None:
    J = draw(0) * np.array([[1.0], [100.0], [0.01], [2.0]])
    out = aggregate(config(), J)
    d = out / np.linalg.norm(out)
    cosines = J @ d / np.linalg.norm(J, axis=1)
    np.testing.assert_allclose(cosines, cosines[0], rtol=1e-9)
    assert cosines[0] > 0
    np.testing.assert_allclose(np.linalg.norm(out), (J @ d).sum(), rtol=1e-12)


def test_cosines_are_as_the_preferences(x64: None) -> None:
    J, p = draw(1), np.array([1.0, 2.0, 0.5, 3.0])
    out = aggregate(config(pref_vector=p), J)
    cosines = J @ out / np.linalg.norm(J, axis=1)
    np.testing.assert_allclose(cosines / cosines[0], p, rtol=1e-9)


def test_a_zero_gradient_has_no_influence_on_the_direction(x64: None) -> None:
    """Its row of U is zero, and the pseudo-inverse leaves it alone."""
    J = draw(2)
    with_zero = np.insert(J, 2, 0, axis=0)
    np.testing.assert_allclose(aggregate(config(), with_zero), aggregate(config(), J), rtol=1e-9, atol=1e-11)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="pref_vector must be finite"):
        config(pref_vector=[np.inf, 1.0])
