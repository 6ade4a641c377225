"""The infinite schedule: its cooldowns, no jump anywhere, annealing that ends where it should, later tasks."""

import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.schedules import anneal_branch, infinite_schedule

W, C, A, N = 4, 6, 15, 5
OWN = {"constant_value": 0.4, "warmup_steps": W, "cooldown_steps": C}
ANNEALED = {"anneal_start": A, "anneal_steps": N, "end_value": 0.025}


@pytest.mark.parametrize("cooldown", ["cosine", "linear", "inverse_sqrt"])
def test_formulas(cooldown: str, x64: None) -> None:
    schedule = infinite_schedule(1.0, **OWN, **ANNEALED, cooldown=cooldown, timescale=7.0)

    def reference(step: int) -> float:
        p = (step - W) / C
        q, last = (1 + 7.0 * p) ** -0.5 - 1 if p >= 0 else 0.0, 8.0**-0.5 - 1
        fall = {
            "cosine": 0.4 + 0.3 * (1 + np.cos(np.pi * p)),
            "linear": 1 - 0.6 * p,
            "inverse_sqrt": 1 - 0.6 * q / last,
        }
        if step < W:
            return step / W
        if step < W + C:
            return fall[cooldown]
        return 0.4 if step < A else 0.4 * (0.025 / 0.4) ** min((step - A) / N, 1)

    np.testing.assert_allclose(schedule(jnp.arange(30)), [reference(step) for step in range(30)], rtol=1e-13)


@pytest.mark.parametrize("cooldown", ["cosine", "linear", "inverse_sqrt"])
def test_no_joint_jumps_and_the_end_is_reached_after_the_annealing_steps(cooldown: str, x64: None) -> None:
    """Bit for bit at the joints, where a phase begins with the value the one before it went to."""
    schedule = infinite_schedule(1.0, **OWN, **ANNEALED, cooldown=cooldown)
    rates = np.asarray(schedule(jnp.array([W, W + C, A, A + N - 1, A + N, A + N + 100])))
    assert rates[[0, 1, 2, 4, 5]].tolist() == [1.0, 0.4, 0.4, 0.025, 0.025] and rates[3] > 0.025
    # Half a step on both sides of a joint the values are as close as the slopes say.
    for joint in (W, W + C, A, A + N):
        near = np.asarray(schedule(jnp.array([joint - 1e-6, joint + 1e-6])))
        assert abs(near[0] - near[1]) < 1e-5


def test_without_annealing_it_never_ends_and_a_branch_is_the_planned_annealing() -> None:
    trunk = infinite_schedule(1.0, **OWN)
    assert trunk.length is None and float(trunk(2**31 - 1)) == np.float32(0.4)
    steps = jnp.arange(30)
    branch = anneal_branch(trunk, start=A, anneal_steps=N, end_value=0.025)
    np.testing.assert_array_equal(branch(steps), infinite_schedule(1.0, **OWN, **ANNEALED)(steps))


def test_a_later_task_starts_at_the_constant_rate() -> None:
    later = infinite_schedule(1.0, constant_value=0.4, warmup_steps=0, cooldown_steps=0)
    assert (np.asarray(later(jnp.arange(3))) == np.float32(0.4)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cooldown": "sqrt"}, "cooldown must be one of"),
        ({"constant_value": 0.0}, "constant_value must be in"),
        ({"timescale": 0.0}, "timescale must be in"),
        ({"anneal_start": 20}, "anneal_start, anneal_steps and end_value must be given together"),
        ({**ANNEALED, "anneal_start": W + C - 1}, "anneal_start must be an integer >= 10"),
        ({**ANNEALED, "end_value": 0.0}, "end_value must be in"),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        infinite_schedule(1.0, **{**OWN, **changes})
    with pytest.raises(ValueError, match="end_value must be in"):
        anneal_branch(infinite_schedule(1.0, **OWN), start=3, anneal_steps=2, end_value=0.0)
