"""SDMGrad: the inner loop in NumPy, and its two limits."""

import numpy as np
import pytest

from gradkit.aggregation import sdmgrad
from tests.papers.stacks import aggregate, draw, runner
from tests.papers.test_modo import nearest


@pytest.mark.parametrize("p", [None, [0.4, 0.3, 0.2, 0.1]])
def test_three_steps(p: list[float] | None, x64: None) -> None:
    own = {"weight_learning_rate": 0.5, "momentum": 0.6, "iterations": 5, "lambda_": 0.4}
    run, state, w = runner(sdmgrad(num_tasks=4, pref_vector=p, **own), 8), None, np.full(4, 0.25)
    toward = 0.4 * (np.full(4, 0.25) if p is None else np.array(p))
    for t in range(3):
        J = draw(t, 8)
        J[4:] += 2 * J[:4]
        A = J[:4] @ J[4:].T
        a = A / (np.sqrt(np.maximum(np.diagonal(A), 0)).mean() ** 2 + 1e-8)
        v = np.zeros(4)
        for _ in range(5):
            v = 0.6 * v + a @ (w + toward)
            w = nearest(w - 0.5 * v)
        out, state = run(J, state)
        np.testing.assert_allclose(out, (w + toward) / 1.4 @ (J[:4] + J[4:]) / 2, rtol=1e-10, atol=1e-11)


def test_a_large_lambda_is_the_preferred_direction(x64: None) -> None:
    J, p = draw(4), np.array([0.4, 0.3, 0.2, 0.1])
    out = aggregate(sdmgrad(num_tasks=4, lambda_=1e8, pref_vector=p), np.concatenate([J, J]))
    np.testing.assert_allclose(out, p @ J, atol=1e-6)
