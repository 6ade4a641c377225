"""The heavy ball with stage-wise decay (Pan et al., 2023)."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.schedules import heavy_ball_constants, stage_decay_schedule
from tests.papers.replay import assert_equal, descend, normal, updates


def test_difference_form(x64: None) -> None:
    """x_{t+1} = x_t - rate_t g_t + momentum (x_t - x_{t-1}), under a rate that changes."""
    rate = stage_decay_schedule(0.4, num_stages=3, steps_per_stage=2, decay_factor=4.0)
    gradients = [normal(i, 5) for i in range(6)]
    last = jnp.zeros(5)
    for t, (g, u) in enumerate(
        zip(gradients, updates(gk.heavy_ball(rate, momentum=0.7), gradients[0], gradients), strict=True)
    ):
        last = -0.4 / 4 ** (t // 2) * g + 0.7 * last
        assert_equal(u, last)


def test_a_new_stage_leaves_the_displacement(x64: None) -> None:
    """Without a gradient the displacement goes on as before; with the rate outside the momentum it would fall."""
    g, rate = normal(0, 5), stage_decay_schedule(1.0, num_stages=2, steps_per_stage=1, decay_factor=10.0)
    ball = updates(gk.heavy_ball(rate, momentum=0.5), g, [g, 0 * g])
    outside = updates(gk.sgd(rate, momentum=0.5), g, [g, 0 * g])
    assert_equal(ball[0], outside[0])
    assert_equal(ball[1], -0.5 * g)
    assert_equal(outside[1], -0.05 * g)


def test_contracts_like_the_root_of_the_condition_number(x64: None) -> None:
    """On diag(1, 1/kappa) with Polyak's constants the error is (1 - 2 / (sqrt(kappa) + 1))^t times a polynomial of
    degree 1 in t."""
    kappa, steps = 400.0, 300
    curvature = jnp.array([1.0, 1 / kappa])
    root = np.sqrt(kappa)
    rate, momentum = 4 / (1 + 1 / root) ** 2, ((root - 1) / (root + 1)) ** 2
    x = descend(gk.heavy_ball(rate, momentum=momentum), jnp.ones(2), lambda x: curvature * x, steps)
    contraction = 1 - 2 / (root + 1)
    assert jnp.abs(x[-1]).max() < 2 * (steps + 1) * contraction**steps
    assert jnp.abs(x[-1]).max() > contraction**steps / 10


def test_stages(x64: None) -> None:
    schedule = stage_decay_schedule(0.3, num_stages=4, steps_per_stage=5, decay_factor=3.0)
    got = np.asarray(schedule(jnp.arange(30)))
    np.testing.assert_allclose(got, 0.3 / 3.0 ** np.minimum(np.arange(30) // 5, 3), rtol=1e-14)
    assert schedule.length == 20
    assert float((schedule + gk.schedules.decay("linear", 10))(25)) == pytest.approx(0.3 / 27 / 2)


def test_constants() -> None:
    found = heavy_ball_constants(100.0, total_steps=4096, decay_factor=2.0, lipschitz=4.0)
    assert found.momentum == pytest.approx(0.81) and found.init_value == 0.25
    assert found.num_stages == int(np.ceil(np.log2(40960)))
    assert found.steps_per_stage == 4096 // found.num_stages
    single = heavy_ball_constants(1.0, total_steps=1)
    assert (single.num_stages, single.steps_per_stage, single.momentum) == (1, 1, 0.0)
    for kwargs, message in (
        ({"kappa": 0.5, "total_steps": 5}, "kappa must be in"),
        ({"kappa": 2.0, "total_steps": 0}, "total_steps must be an integer >= 1"),
        ({"kappa": 2.0, "total_steps": 5, "decay_factor": 1.0}, "decay_factor must be in"),
        ({"kappa": 2.0, "total_steps": 5, "lipschitz": 0.0}, "lipschitz must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            heavy_ball_constants(**kwargs)
