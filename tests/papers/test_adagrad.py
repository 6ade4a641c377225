"""AdaGrad (Duchi, Hazan, Singer, 2011; Ruder, 2016)."""

import jax.numpy as jnp
import numpy as np

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_first_step_is_the_sign_of_the_gradient(x64: None) -> None:
    g = normal(0, 20)
    assert_equal(updates(gk.adagrad(0.1, eps=0.0), g, [g])[0], -0.1 * jnp.sign(g))


def test_constant_gradients_give_steps_that_fall_as_the_root(x64: None) -> None:
    g = normal(0, 4)
    for t, u in enumerate(updates(gk.adagrad(0.1, eps=0.0), g, [g] * 6), 1):
        assert_equal(u, -0.1 * jnp.sign(g) / np.sqrt(t))


def test_decay_of_the_rate_also_of_a_schedule(x64: None) -> None:
    gradients = [normal(i, 4) for i in range(5)]
    plain = updates(gk.adagrad(0.1), gradients[0], gradients)
    decayed = updates(gk.adagrad(0.1, lr_decay=0.5), gradients[0], gradients)
    scheduled = updates(
        gk.adagrad(lambda step: 0.1 * 2.0 ** jnp.asarray(step, float), lr_decay=0.5), gradients[0], gradients
    )
    for t, (a, b, c) in enumerate(zip(plain, decayed, scheduled, strict=True)):
        assert_equal(b, a / (1 + 0.5 * t))
        assert_equal(c, a * 2.0**t / (1 + 0.5 * t))


def test_ruders_form(x64: None) -> None:
    gradients = [normal(i, 4) for i in range(4)]
    s = 0.0
    for g, u in zip(
        gradients, updates(gk.adagrad(0.1, eps=1e-2, eps_in_sqrt=True), gradients[0], gradients), strict=True
    ):
        s = s + g**2
        assert_equal(u, -0.1 * g / jnp.sqrt(s + 1e-2))
