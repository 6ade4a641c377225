"""Excess-MTL: three steps in NumPy, with and without a warm-up."""

import numpy as np
import pytest

from gradkit.aggregation import excess_mtl
from tests.papers.stacks import draw, runner


@pytest.mark.parametrize("warmup", [0, 2])
def test_five_steps(warmup: int, x64: None) -> None:
    run, state = runner(excess_mtl(num_tasks=4, robust_step_size=0.7, n_warmup_steps=warmup)), None
    w, S, seen, base = np.full(4, 0.25), 0.0, [], None
    for t in range(5):
        J = draw(t) * np.array([[1.0], [2.0], [0.1], [1.0]])
        S = S + J**2
        x = (J**2 / np.sqrt(S + 1e-7)).sum(1)
        if t < warmup:
            seen.append(x)
        else:
            if base is None:
                excess, base = (x, x) if not seen else (None, np.mean(seen, axis=0))
                excess = x / (base + 1e-7) if excess is None else excess
            else:
                excess = x / (base + 1e-7)
            w = w * np.exp(0.7 * excess)
            w = w / w.sum()
        out, state = run(J, state)
        np.testing.assert_allclose(out, w @ J, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(state.weights, w, rtol=1e-10)


def test_a_task_whose_gradient_vanishes_loses_weight(x64: None) -> None:
    run, state, J = runner(excess_mtl(num_tasks=4)), None, draw(0)
    for t in range(5):
        _, state = run(J * np.array([[1.0], [1.0], [1.0], [0.1**t]]), state)
    assert np.argmin(state.weights) == 3
