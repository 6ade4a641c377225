"""Nesterov's momentum under the schedule of LARS (Nado et al., 2021)."""

import jax.numpy as jnp
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_is_sgd_under_the_schedule(x64: None) -> None:
    """Decay in the gradient and before the momentum, on every leaf that the mask does not leave out."""
    x = {"kernel": normal(0, 3, 2), "bias": normal(1, 2)}
    gradients = [{"kernel": normal(2 + i, 3, 2), "bias": normal(20 + i, 2)} for i in range(9)]
    shape = {"warmup_steps": 3, "total_steps": 7, "power": 1.5, "warmup_power": 2.0, "decay_end": 6}
    rate = gk.schedules.warmup_polynomial_schedule(0.8, init_value=0.08, end_value=0.16, **shape)
    for mask in (None, gk.leaves.by_rank(2)):
        decay = {"weight_decay": 0.1, "weight_decay_mask": mask}
        own = gk.nesterov_large_batch(0.8, momentum=0.7, init_factor=0.1, end_factor=0.2, **shape, **decay)
        sgd = gk.sgd(rate, momentum=0.7, nesterov=True, **decay)
        assert_equal(updates(own, x, gradients), updates(sgd, x, gradients))


def test_a_schedule_is_multiplied(x64: None) -> None:
    x = normal(0, 3)
    gradients = [normal(i, 3) for i in range(4)]
    halved = gk.nesterov_large_batch(lambda t: jnp.where(t < 2, 0.4, 0.2), total_steps=9)
    plain = updates(gk.nesterov_large_batch(0.4, total_steps=9), x, gradients)
    got = updates(halved, x, gradients)
    assert_equal(got, [*plain[:2], *(u / 2 for u in plain[2:])])


def test_on_a_constant_gradient(x64: None) -> None:
    """v_t = (1 - m^t) / (1 - m) g, and a step of g + m v."""
    m, T = 0.5, 5
    got = updates(gk.nesterov_large_batch(1.0, total_steps=T, momentum=m), jnp.ones(1), [jnp.ones(1)] * T)
    for t, u in enumerate(got):
        factor = (1 - t / (T + 1)) ** 2
        assert_equal(u, [-factor * (1 + m * (1 - m ** (t + 1)) / (1 - m))])


def test_bad_input() -> None:
    for bad in ({"momentum": 0.0}, {"init_factor": -1.0}, {"end_factor": float("nan")}, {"weight_decay": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            gk.nesterov_large_batch(0.1, total_steps=5, **bad)
    with pytest.raises(ValueError, match="total_steps must be"):
        gk.nesterov_large_batch(0.1, total_steps=2, warmup_steps=3)
