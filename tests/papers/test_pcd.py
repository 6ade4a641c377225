"""Priority-constrained descent: its program by SciPy, and what the primary task keeps."""

import numpy as np
from scipy.optimize import minimize

from gradkit.aggregation import pcd
from tests.papers.stacks import aggregate, conflicting, draw, runner


def test_the_first_step_is_the_nearest_direction_that_harms_no_other_task(x64: None) -> None:
    """With unit gradients u (the averages are the squared norms then): min |d - u_0|^2, <d, u_i> >= tau."""
    tau, J = 0.05, conflicting(0)
    u = J / np.linalg.norm(J, axis=1, keepdims=True)
    d = minimize(
        lambda d: np.sum((d - u[0]) ** 2),
        u[0],
        jac=lambda d: 2 * (d - u[0]),
        constraints={"type": "ineq", "fun": lambda d: u[1:] @ d - tau, "jac": lambda d: u[1:]},
        options={"ftol": 1e-14},
    ).x
    out = aggregate(pcd(num_tasks=4, tau=tau, eps=1e-14), J)
    # The reference stops when its function changes by 1e-14: its point by the root of that.
    np.testing.assert_allclose(out, d * np.linalg.norm(J[0]) / np.linalg.norm(d), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(out), np.linalg.norm(J[0]), rtol=1e-10)


def test_without_a_conflict_the_others_do_not_matter(x64: None) -> None:
    J = np.abs(draw(1))
    np.testing.assert_allclose(aggregate(pcd(num_tasks=4), J), J[0], rtol=1e-10)


def test_gradients_are_normalised_by_averages_over_steps(x64: None) -> None:
    """Debiased: gradients of constant norm are unit ones from the first step on, whatever beta."""
    J, results = conflicting(2), []
    for beta in (0.5, 0.999):
        run, state = runner(pcd(num_tasks=4, beta=beta)), None
        for _ in range(3):
            out, state = run(J, state)
        results.append(out)
    np.testing.assert_allclose(results[0], results[1], rtol=1e-9)


def test_where_no_combination_helps_the_primary_gradient_is_followed(x64: None) -> None:
    """Two others that are opposite cannot both gain; and a primary gradient of zero gives zero."""
    J = draw(3, 3)
    J[2] = -J[1]
    np.testing.assert_allclose(aggregate(pcd(num_tasks=3), J), J[0], rtol=1e-9)
    np.testing.assert_array_equal(aggregate(pcd(num_tasks=3), J * np.array([[0.0], [1.0], [1.0]])), 0)
