"""Steps to a goal, and what a larger batch saves (Shallue et al., 2018)."""

import numpy as np
import pytest

from gradkit.diagnostics import batch_scaling, fit_steps_examples, steps_to_target

nan = np.nan


def test_first_step_that_reaches_the_goal() -> None:
    steps = [10, 20, 30, 40]
    curves = [[4, 3, 5, 1], [4, 2, 1, 0], [9, 9, 9, 9], [nan, nan, 3, nan], [3, nan, nan, nan]]
    np.testing.assert_array_equal(steps_to_target(steps, curves, 3), [20, 20, nan, 30, 10])
    np.testing.assert_array_equal(steps_to_target(steps, -np.array(curves), -3, mode="max"), [20, 20, nan, 30, 10])
    assert steps_to_target(steps, curves[0], 3) == 20 and steps_to_target(steps, curves[0], 3).shape == ()
    assert steps_to_target(steps, np.reshape(curves[:4], (2, 2, 4)), 3).shape == (2, 2)


def test_the_hyperbola_is_recovered() -> None:
    """S = S_min (1 + B_crit / B): slope -1 far below B_crit, 0 far above, and -1/2 on the average at it."""
    S_min, B_crit = 500.0, 256.0
    B = 2.0 ** np.arange(0, 17)
    S = S_min * (1 + B_crit / B)
    found = batch_scaling(B[::-1], S[::-1], tolerance=0.02)
    np.testing.assert_array_equal(found.batches, B)
    assert found.slopes[0] == pytest.approx(-1, abs=0.01) and found.slopes[-1] == pytest.approx(0, abs=0.01)
    assert found.slopes[7] + found.slopes[8] == pytest.approx(-1, abs=1e-12)  # of 128 to 256 and of 256 to 512
    # B S = S_min (B + B_crit) is 2 % above that of B = 1 from B = 6.1 on; S is 2 % above its least at B = 10 700.
    assert found.perfect_batch == 4 and found.max_useful_batch == 16384
    fit = fit_steps_examples(found.steps, found.batches * found.steps)
    np.testing.assert_allclose(np.array(fit), [S_min, S_min * B_crit], rtol=1e-10)


def test_perfect_scaling_and_none() -> None:
    perfect = batch_scaling([8, 16, 32], [400, 200, 100], tolerance=0)
    assert (
        perfect.slopes.tolist() == pytest.approx([-1, -1]) and perfect.perfect_batch == perfect.max_useful_batch == 32
    )
    flat = batch_scaling([8, 16, 32], [100, 100, 100], tolerance=0)
    assert flat.slopes.tolist() == [0, 0] and flat.perfect_batch == flat.max_useful_batch == 8
    # Perfect scaling that has ended does not begin again.
    again = batch_scaling([8, 16, 32], [400, 300, 100], tolerance=0)
    assert again.perfect_batch == 8 and again.max_useful_batch == 32


def test_the_best_trial_of_each_batch() -> None:
    """Those that failed or diverged are left out, and a batch of which none is left."""
    found = batch_scaling([8, 8, 16, 16, 32, 4], [900, 800, nan, 450, 300, np.inf])
    assert found.batches.tolist() == [8, 16, 32] and found.steps.tolist() == [800, 450, 300]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: steps_to_target([1, 2], [1.0, 2.0, 3.0], 1), "steps must be"),
        (lambda: steps_to_target([2, 1], [1.0, 2.0], 1), "ascend"),
        (lambda: steps_to_target([1, nan], [1.0, 2.0], 1), "ascend"),
        (lambda: steps_to_target([1], [1.0], nan), "target must be"),
        (lambda: steps_to_target([1], [1.0], 1, mode="low"), "mode must be"),
        (lambda: batch_scaling([1, 2], [1]), "vectors of one length"),
        (lambda: batch_scaling([1, 2], [nan, np.inf]), "at least one trial must have reached"),
        (lambda: batch_scaling([0, 2], [1, 1]), "must be positive"),
        (lambda: batch_scaling([nan, 2], [1, 1]), "must be positive"),
        (lambda: batch_scaling([1, 2], [2, 1], tolerance=-1), "tolerance must be"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
