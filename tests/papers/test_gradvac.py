"""Gradient Vaccine: the algorithm box on the gradients themselves."""

import jax
import numpy as np
import pytest

from gradkit.aggregation import gradvac, pcgrad
from tests.papers.stacks import aggregate, conflicting, draw, runner


def box(J: np.ndarray, phi: np.ndarray, order: list[list[int]], beta: float) -> np.ndarray:
    """On vectors; phi in place, with the cosine before the correction."""
    total = np.zeros(J.shape[1])
    for i, row in enumerate(order):
        a = J[i].copy()
        for j in row:
            p, h = a @ J[j] / np.linalg.norm(a) / np.linalg.norm(J[j]), phi[i, j]
            if p < h:
                top = h * np.sqrt(1 - p**2) - p * np.sqrt(1 - h**2)
                a = a + np.linalg.norm(a) * top / (np.linalg.norm(J[j]) * np.sqrt(1 - h**2)) * J[j]
            phi[i, j] = (1 - beta) * h + beta * p
        total += a
    return total


def test_against_the_algorithm_box(x64: None) -> None:
    order, phi, state = [[3, 1, 2], [0, 2, 3], [1, 0, 3], [2, 1, 0]], np.zeros((4, 4)), None
    run = runner(gradvac(num_tasks=4, beta=0.3, eps=1e-14, order=order))
    for t in range(4):
        J = draw(t, shift=0.5)
        out, state = run(J, state)
        np.testing.assert_allclose(out, box(J, phi, order, 0.3), rtol=1e-10, atol=1e-11)
        np.testing.assert_allclose(np.asarray(state.phi), phi, rtol=1e-10, atol=1e-12)


def test_two_tasks_get_the_cosine_they_have_had(x64: None) -> None:
    """After the correction the cosine of a with g_j is h exactly."""
    high, J = draw(0, 2, shift=2.0), draw(1, 2)
    run = runner(gradvac(num_tasks=2, beta=1.0, eps=1e-14, order=[[1], [0]]), 2)
    h = high[0] @ high[1] / np.linalg.norm(high[0]) / np.linalg.norm(high[1])
    out, _ = run(J, run(high)[1])
    weights = np.linalg.lstsq(J.T, out, rcond=None)[0]
    a, b = J[0] + (weights[1] - 1) * J[1], J[1] + (weights[0] - 1) * J[0]
    np.testing.assert_allclose(a @ J[1] / np.linalg.norm(a) / np.linalg.norm(J[1]), h, rtol=1e-9)
    np.testing.assert_allclose(b @ J[0] / np.linalg.norm(b) / np.linalg.norm(J[0]), h, rtol=1e-9)


def test_the_first_step_is_that_of_pcgrad(x64: None) -> None:
    J, order = conflicting(2), [[1, 2, 3], [2, 3, 0], [3, 0, 1], [0, 1, 2]]
    got = aggregate(gradvac(num_tasks=4, order=order, eps=1e-14), J)
    np.testing.assert_allclose(got, aggregate(pcgrad(order=order), J), rtol=1e-9, atol=1e-11)


def test_zero_gradients_stay_out(x64: None, key: jax.Array) -> None:
    J = draw(3)
    J[1] = 0
    run, state = runner(gradvac(num_tasks=4, key=key)), None
    for _ in range(3):
        out, state = run(J, state)
        assert np.isfinite(out).all()
    np.testing.assert_array_equal(np.asarray(state.phi)[:, 1], 0)


def test_bad_input(key: jax.Array) -> None:
    with pytest.raises(ValueError, match="not both"):
        gradvac(num_tasks=2, key=key, order=[[1], [0]])
    with pytest.raises(ValueError, match="gradvac: num_tasks is 3, and 4 gradients came"):
        aggregate(gradvac(num_tasks=3, key=key), draw(0).astype(np.float32))
