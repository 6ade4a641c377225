"""Nash-MTL: the bargaining point."""

import numpy as np
import pytest

from gradkit.aggregation import fairgrad, nash_mtl
from tests.papers.stacks import aggregate, conflicting, draw


def test_it_is_the_bargaining_point(x64: None) -> None:
    """Weights with G w = 1 / w, to rounding; the fixed number of steps of the authors' procedure leaves a rest. Of
    directions of that norm none has a larger product of gains."""
    J = conflicting(0)
    out = aggregate(nash_mtl(max_norm=100.0), J)
    w = np.linalg.lstsq(J.T, out, rcond=None)[0]
    np.testing.assert_allclose(J @ J.T @ w, 1 / w, rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(out), 2, rtol=1e-10)  # sqrt(m)
    others = out + 0.3 * draw(1, 500)
    gains = (2 * others / np.linalg.norm(others, axis=1, keepdims=True)) @ J.T
    products = np.where((gains > 0).all(1), np.prod(gains, axis=1), 0)
    assert products.max() <= np.prod(J @ out) and products.max() > 0


def test_the_norm_is_limited_and_scales_do_not_matter(x64: None) -> None:
    J = conflicting(2)
    out = aggregate(nash_mtl(), J)
    np.testing.assert_allclose(np.linalg.norm(out), 1, rtol=1e-12)
    np.testing.assert_allclose(out, aggregate(fairgrad(), J) / 2, rtol=1e-10)
    scaled = aggregate(nash_mtl(), J * np.array([[1e3], [1.0], [1e-2], [5.0]]))
    np.testing.assert_allclose(scaled, out, rtol=1e-8, atol=1e-9)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="max_norm must be in"):
        nash_mtl(max_norm=0.0)
