"""XGrad (Guan, Li et al., 2023)."""

from typing import Any

import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, descend, normal


def gradient(x):
    return x**3 - 2 * x + 0.3


def test_no_prediction_is_the_inner_optimizer(x64: None) -> None:
    x = normal(0, 6)
    inner = gk.adam(0.1)
    assert_equal(descend(gk.xgrad(inner, prediction_steps=0), x, gradient, 5), descend(inner, x, gradient, 5))


def test_sgd_predicting_by_its_momentum_is_nesterov(x64: None) -> None:
    """Both are momentum with the gradient taken one momentum step ahead."""
    x = normal(0, 6)
    predicted = descend(gk.xgrad_sgd(0.05, momentum=0.9, prediction_steps=0.9), x, gradient, 12)
    assert_equal(predicted, descend(optax.sgd(0.05, momentum=0.9, nesterov=True), x, gradient, 12), rtol=1e-11)


def test_decay_is_at_the_true_parameters_and_not_predicted(x64: None) -> None:
    x = normal(0, 6)
    tx, zero = gk.xgrad_adamw(0.1, weight_decay=0.5, prediction_steps=3), 0 * x
    state, y = tx.init(x), x
    for t in range(3):
        u, state = tx.update(zero, state, y)
        y = y + u
        assert_equal(y, 0.95 ** (t + 1) * x)  # no gradient: nothing is predicted
        assert_equal(gk.eval_params(state, y), y)


@pytest.mark.parametrize("steps", [1, 2])
def test_true_parameters_are_those_of_the_inner_run_on_predicted_gradients(steps: int, x64: None) -> None:
    x = normal(0, 6)
    tx = gk.xgrad(gk.sgd(0.1, momentum=0.5), prediction_steps=steps)
    state, y, true, v = tx.init(x), x, x, 0 * x
    for _ in range(4):
        g = gradient(y)
        u, state = tx.update(g, state, y)
        y = y + u
        v = 0.5 * v + g
        true = true - 0.1 * v
        assert_equal(gk.eval_params(state, y), true)
        assert_equal(y, true - steps * 0.1 * v)


def test_adam_is_adamw_without_decay(x64: None) -> None:
    ends = []
    for tx in (gk.xgrad_adam(0.1, prediction_steps=3), gk.xgrad_adamw(0.1, prediction_steps=3)):
        y: Any = normal(0, 3)
        state = tx.init(y)
        for _ in range(3):
            u, state = tx.update(y, state, y)
            y = y + u
        ends.append(y)
    assert_equal(ends[0], ends[1])
