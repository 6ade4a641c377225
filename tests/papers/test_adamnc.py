"""AdamNC (Reddi, Kale, Kumar, 2018)."""

import jax.numpy as jnp
import numpy as np

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_second_moment_is_the_mean_and_momentum_decays(x64: None) -> None:
    gradients = [normal(i, 6) for i in range(7)]
    m = np.zeros(6)
    got = updates(gk.scale_by_adamnc(b1=0.8, b1_decay=0.5, eps=1e-3), gradients[0], gradients)
    for t, (g, u) in enumerate(zip(gradients, got, strict=True)):
        b = 0.8 * 0.5**t
        m = b * m + (1 - b) * np.asarray(g)
        assert_equal(u, m / (np.sqrt(np.mean(np.square(gradients[: t + 1]), axis=0)) + 1e-3))


def test_without_momentum_it_is_adagrad(x64: None) -> None:
    gradients = [normal(i, 6) for i in range(7)]
    rate = lambda step: 0.3 / jnp.sqrt(step.astype(float) + 1)  # noqa: E731
    mine = updates(gk.adamnc(rate, b1=0.0, eps=0.0), gradients[0], gradients)
    assert_equal(mine, updates(gk.adagrad(0.3, eps=0.0), gradients[0], gradients))


def test_the_first_step_has_b1_and_a_b1_decay_of_zero_leaves_no_momentum(x64: None) -> None:
    g = normal(0, 6)
    first, second = updates(gk.scale_by_adamnc(b1=0.9, b1_decay=0.0, eps=0.0), g, [g, g])
    assert_equal(first, 0.1 * jnp.sign(g))
    assert_equal(second, jnp.sign(g))
