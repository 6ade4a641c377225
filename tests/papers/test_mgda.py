"""MGDA: the shortest vector of the convex hull."""

import numpy as np
import pytest

from gradkit.aggregation import mgda
from tests.papers.stacks import aggregate, draw


def test_two_tasks_have_a_closed_form(x64: None) -> None:
    """gamma = clip(<g_2 - g_1, g_2> / |g_2 - g_1|^2, 0, 1) is the weight of g_1."""
    for seed, scale in ((0, 1.0), (1, 0.3), (2, 9.0)):
        a, b = draw(seed, 2) * np.array([[1.0], [scale]])
        gamma = np.clip((b - a) @ b / ((b - a) @ (b - a)), 0, 1)
        np.testing.assert_allclose(
            aggregate(mgda(epsilon=1e-12), np.stack([a, b])), gamma * a + (1 - gamma) * b, rtol=1e-10, atol=1e-12
        )


def test_the_shortest_vector_has_an_inner_product_of_its_square_with_every_gradient(x64: None) -> None:
    """|x|^2 <= <x, g_i> characterises it, so no task gets worse. The gap of Frank-Wolfe after k steps is at most
    2 D^2 / (k + 2), with D the diameter of the hull."""
    J = draw(3)
    x = aggregate(mgda(epsilon=0.0, max_iters=20000), J)
    D = max(((a - b) @ (a - b)) for a in J for b in J)
    assert (J @ x >= x @ x - 2 * 2 * D / 20000).all()
    assert (J @ x > 0).all() and x @ x < min((J * J).sum(1))


def test_it_stops_after_a_short_step(x64: None) -> None:
    """With a large epsilon the first step is the last: the reference is one step of Frank-Wolfe in NumPy."""
    J = draw(4)
    G, a = J @ J.T, np.full(4, 0.25)
    t = np.argmin(G @ a)
    A, B, C = (G @ a)[t], a @ G @ a, G[t, t]
    gamma = 1.0 if C <= A else 0.0 if B <= A else (B - A) / (B + C - 2 * A)
    a = (1 - gamma) * a + gamma * np.eye(4)[t]
    np.testing.assert_allclose(aggregate(mgda(epsilon=2.0), J), a @ J, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(aggregate(mgda(max_iters=1), J), a @ J, rtol=1e-12, atol=1e-14)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="epsilon must be in"):
        mgda(epsilon=-1.0)
