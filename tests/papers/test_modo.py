"""MoDo: the projection, the rule, and the bias that two batches avoid."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from gradkit.aggregation import modo
from gradkit.aggregation.modo import project_to_simplex
from tests.papers.stacks import aggregate, draw, runner


def nearest(x: np.ndarray) -> np.ndarray:
    """By bisection on the common shift."""
    low, high = x.min() - 1, x.max()
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(x - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(x - low, 0)


def test_the_projection_is_the_nearest_point_of_the_simplex(x64: None) -> None:
    for x in (*draw(0), [0.2, 0.3, 0.5], [5.0, 5.0], [-1.0, -2.0, -3.0]):
        np.testing.assert_allclose(project_to_simplex(jnp.asarray(x)), nearest(np.asarray(x)), atol=1e-12)


def test_three_steps(x64: None) -> None:
    run, state, lam = runner(modo(num_tasks=4, gamma=0.2, rho=0.3), 8), None, np.full(4, 0.25)
    for t in range(3):
        J = draw(t, 8)
        out, state = run(J, state)
        lam = nearest(lam - 0.2 * (J[:4] @ J[4:].T @ lam + 0.3 * lam))
        np.testing.assert_allclose(out, lam @ (J[:4] + J[4:]) / 2, rtol=1e-11, atol=1e-12)


def test_at_rest_the_direction_is_the_shortest(x64: None) -> None:
    """Without noise the two batches are one, and the weights go to those of the shortest vector, rho aside."""
    J = draw(5)
    run, state = runner(modo(num_tasks=4, gamma=0.02, rho=1e-6), 8), None
    for _ in range(3000):
        out, state = run(np.concatenate([J, J]), state)
    start, simplex = np.full(4, 0.25), {"type": "eq", "fun": lambda w: w.sum() - 1}
    best = minimize(lambda w: np.sum((w @ J) ** 2), start, bounds=[(0, 1)] * 4, constraints=simplex, tol=1e-12)
    np.testing.assert_allclose(out, best.x @ J, atol=1e-3)


def test_bad_input() -> None:
    for came in (3, 4):
        match = rf"modo: {came} gradients came, and num_tasks=3 needs 6: those .* jnp\.concatenate"
        with pytest.raises(ValueError, match=match):
            aggregate(modo(num_tasks=3), draw(0, came).astype(np.float32))
