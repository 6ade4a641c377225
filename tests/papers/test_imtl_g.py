"""IMTL-G: equal projections."""

import numpy as np

from gradkit.aggregation import imtl_g
from tests.papers.stacks import aggregate, draw


def test_projections_on_all_unit_gradients_are_equal_and_weights_add_up_to_one(x64: None) -> None:
    for seed in range(3):
        J = draw(seed) * np.array([[1.0], [10.0], [0.1], [2.0]])
        out = aggregate(imtl_g(), J)
        along = (J / np.linalg.norm(J, axis=1, keepdims=True)) @ out
        np.testing.assert_allclose(along, along[0], rtol=1e-9)
        weights = np.linalg.lstsq(J.T, out, rcond=None)[0]
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-9)


def test_the_closed_form_of_the_paper(x64: None) -> None:
    """Weights of all tasks but the first, from differences to it: alpha = g_1 U^T (D U^T)^-1."""
    J = draw(5)
    u = J / np.linalg.norm(J, axis=1, keepdims=True)
    D, U = J[0] - J[1:], u[0] - u[1:]
    alpha = J[0] @ U.T @ np.linalg.inv(D @ U.T)
    np.testing.assert_allclose(aggregate(imtl_g(), J), np.array([1 - alpha.sum(), *alpha]) @ J, rtol=1e-9, atol=1e-11)


def test_opposite_gradients_give_nothing_or_numbers(x64: None) -> None:
    J = draw(1, 2)
    J[1] = -J[0]
    np.testing.assert_array_equal(aggregate(imtl_g(), J), 0)
