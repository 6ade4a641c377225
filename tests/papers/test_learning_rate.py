"""The learning rate as a link (Robbins, Monro, 1951)."""

import jax
import jax.numpy as jnp

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_schedule_is_called_with_the_number_of_earlier_steps(x64: None) -> None:
    g = normal(0, 3)
    got = updates(gk.scale_by_learning_rate(lambda step: 1.0 + step.astype(float)), g, [g] * 3)
    assert_equal(got, [-(t + 1) * g for t in range(3)])


def test_sign_can_be_kept(x64: None) -> None:
    g = normal(0, 3)
    assert_equal(updates(gk.scale_by_learning_rate(0.5, flip_sign=False), g, [g])[0], 0.5 * g)


def test_rate_is_published_in_float32_whatever_the_parameters_are() -> None:
    for rate in (0.1, jnp.asarray(0.1), lambda step: jnp.asarray(0.1) * (step >= 0).astype(jnp.float32)):
        tx = gk.scale_by_learning_rate(rate)
        x = jnp.ones(2, jnp.bfloat16)
        state = tx.init(x)
        _, after = tx.update(x, state)
        for s in (state, after):
            assert s.metrics["last_learning_rate"].dtype == jnp.float32
            assert jax.numpy.allclose(s.metrics["last_learning_rate"], 0.1)
