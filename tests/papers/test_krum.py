"""Krum: whom it selects."""

import numpy as np
import pytest

from gradkit.aggregation import krum
from tests.papers.stacks import aggregate, draw


def select(J: np.ndarray, f: int, n: int, squared: bool) -> np.ndarray:
    """By loops over the vectors themselves."""
    power, scores = (2 if squared else 1), []
    for i, g in enumerate(J):
        distances = sorted(np.linalg.norm(g - h) ** power for j, h in enumerate(J) if j != i)
        scores.append(sum(distances[: len(J) - f - 2]))
    return J[np.argsort(scores, kind="stable")[:n]].mean(0)


@pytest.mark.parametrize(("f", "n", "squared"), [(2, 1, True), (2, 3, True), (0, 7, True), (2, 1, False)])
def test_against_loops(f: int, n: int, squared: bool, x64: None) -> None:
    for seed in range(3):
        J = draw(seed, 7)
        out = aggregate(krum(n_byzantine=f, n_selected=n, squared=squared), J)
        np.testing.assert_allclose(out, select(J, f, n, squared), rtol=1e-12, atol=1e-14)


def test_gradients_of_faulty_workers_have_no_influence(x64: None) -> None:
    J = draw(3, 7, shift=1.0)
    J[[1, 4]] = [1e6 * draw(4, 1)[0], -1e3 * draw(5, 1)[0]]
    before = aggregate(krum(n_byzantine=2), J)
    J[[1, 4]] *= -7
    np.testing.assert_array_equal(aggregate(krum(n_byzantine=2), J), before)


def test_squares_are_the_paper_and_distances_select_another(x64: None) -> None:
    """Scores 1 + 25 and 9 + 16 of squares, 1 + 5 and 3 + 4 of distances."""
    x = np.array([0.0, 1.0, -5.0, 100.0, 103.0, 96.0])[:, None] * np.eye(1, 9)
    squares, distances = (aggregate(krum(n_byzantine=2, squared=s), x)[0] for s in (True, False))
    assert squares == select(x, 2, 1, True)[0] == 100.0
    assert distances == select(x, 2, 1, False)[0] == 0.0


def test_ties_go_to_the_first(x64: None) -> None:
    """With one neighbour each, two gradients that are each other's nearest have the same score."""
    J = draw(6, 4) * np.array([[1.0], [1.0], [30.0], [60.0]])
    np.testing.assert_allclose(aggregate(krum(n_byzantine=1), J), J[0], rtol=1e-14)
    np.testing.assert_allclose(aggregate(krum(n_byzantine=1), J[[1, 0, 2, 3]]), J[1], rtol=1e-14)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"krum: 4 gradients came, and n_byzantine=2, n_selected=1 need 5 or more"):
        aggregate(krum(n_byzantine=2), draw(0).astype(np.float32))
    with pytest.raises(ValueError, match="n_selected must be an integer >= 1"):
        krum(n_selected=0)
