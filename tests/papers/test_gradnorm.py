"""GradNorm: its procedure in NumPy, and where it comes to rest."""

import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.aggregation import gradnorm
from tests.papers.stacks import aggregate, draw, runner


@pytest.mark.parametrize(("mask", "used"), [(None, slice(None)), ({"a": True, "b": False}, slice(0, 3))])
def test_three_steps(mask: object, used: slice, x64: None) -> None:
    """The target is a constant of the derivative, the weights are those before their step, and add up to m after it."""
    alpha, rate, w, first, state = 0.7, 0.05, np.ones(4), None, None
    run = runner(gradnorm(num_tasks=4, alpha=alpha, weight_learning_rate=rate, mask=mask))
    for t in range(3):
        J, L = draw(t), np.abs(draw(t + 10, 1)[0, :4]) + 0.1
        first = L if first is None else first
        out, state = run(J, state, losses=jnp.asarray(L))
        np.testing.assert_allclose(out, w @ J, rtol=1e-12, atol=1e-14)
        n = np.linalg.norm(J[:, used], axis=1)
        r = L / first / np.mean(L / first)
        w = w - rate * np.sign(w * n - np.mean(w * n) * r**alpha) * n
        w = 4 * w / w.sum()
        np.testing.assert_allclose(state.weights, w, rtol=1e-12)


def test_with_alpha_zero_all_norms_become_equal(x64: None) -> None:
    """To the size of a step of the weights, which is the rate times a norm."""
    J = draw(0) * np.array([[1.0], [5.0], [0.3], [2.0]])
    run, state = runner(gradnorm(num_tasks=4, alpha=0.0, weight_learning_rate=1e-3)), None
    for _ in range(3000):
        _, state = run(J, state, losses=jnp.ones(4))
    norms = np.asarray(state.weights) * np.linalg.norm(J, axis=1)
    # One step changes w n by 1e-3 n^2, at most 0.3 here, of all of them.
    np.testing.assert_allclose(norms, norms.mean(), atol=2 * 1e-3 * (J**2).sum(1).max())
    np.testing.assert_allclose(np.asarray(state.weights).sum(), 4, rtol=1e-12)


def test_equal_tasks_leave_all_weights_at_one(x64: None) -> None:
    run, state, J = runner(gradnorm(num_tasks=4)), None, np.stack([draw(1, 1)[0]] * 4)
    for t in range(3):
        _, state = run(J, state, losses=jnp.full(4, 2.0 / (t + 1)))
    np.testing.assert_array_equal(state.weights, 1)


def test_a_first_loss_of_zero_and_weights_that_vanish_give_numbers(x64: None) -> None:
    run, state = runner(gradnorm(num_tasks=4, weight_learning_rate=10.0)), None
    for t in range(3):
        out, state = run(draw(t), state, losses=jnp.array([0.0, 1.0, 2.0, 3.0]))
        assert np.isfinite(out).all()
        np.testing.assert_allclose(np.asarray(state.weights).sum(), 4, rtol=1e-9)


def test_initial_losses_may_be_given_and_bad_input(x64: None) -> None:
    run, L = runner(gradnorm(num_tasks=4, initial_losses=[1.0, 2.0, 4.0, 8.0])), jnp.array([1.0, 2.0, 4.0, 4.0])
    _, state = run(np.stack([draw(1, 1)[0]] * 4), losses=L)
    assert state.weights[3] < 1 < state.weights[0]  # the last has fallen already
    with pytest.raises(ValueError, match="initial_losses must be numbers > 0"):
        gradnorm(num_tasks=2, initial_losses=[1.0, 0.0])
    with pytest.raises(ValueError, match="gradnorm needs the extra argument losses"):
        aggregate(gradnorm(num_tasks=4), draw(0))
    with pytest.raises(ValueError, match=r"gradnorm.*mask.*selects"):
        aggregate(gradnorm(num_tasks=4, mask={"a": False, "b": False}), draw(0), losses=L)
