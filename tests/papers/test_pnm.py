"""Positive-negative momentum (Xie et al., 2021)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_against_two_buffers_that_change_places(x64: None) -> None:
    g, b0, b1 = [normal(i, 5) for i in range(7)], 0.7, 0.8
    buffers = [np.zeros(5), np.zeros(5)]
    for t, (x, u) in enumerate(zip(g, updates(gk.positive_negative_momentum(0.1, b0=b0, b1=b1), g[0], g), strict=True)):
        positive, negative = t % 2, 1 - t % 2
        buffers[positive] = b1**2 * buffers[positive] + (1 - b1**2) * np.asarray(x)
        direction = ((1 + b0) * buffers[positive] - b0 * buffers[negative]) / np.hypot(1 + b0, b0)
        assert_equal(u, -0.1 * direction / (1 - b1 ** (t + 1)))


def test_odd_and_even_steps_never_mix_without_a_negative_part(x64: None) -> None:
    """b0 = 0: every second gradient, in a running mean whose decay is b1^2."""
    g = [normal(i, 5) for i in range(6)]
    out = updates(gk.scale_by_pnm(b0=0.0, b1=0.9, bias_correction=False), g[0], g)
    for start in (0, 1):
        mine = g[start::2]
        assert_equal(out[start::2], updates(gk.scale_by_qhm(b1=0.9**2, nu=1.0), g[0], mine))


def test_noise_of_the_step_grows_from_a_half_of_each(x64: None) -> None:
    """With gradients that are pure noise, the step has the variance of one mean whatever b0 is, since both means are
    independent and the weights are normalised. Of a constant gradient it has 1 / sqrt((1 + b0)^2 + b0^2): the signal is
    largest, sqrt(2), at b0 = -1/2."""
    noise = jnp.asarray(np.random.default_rng(0).standard_normal((200, 2000)))

    def last(b0: float, gradients: jax.Array) -> Any:
        tx = gk.scale_by_pnm(b0=b0, b1=0.5, bias_correction=False)
        body = lambda state, g: tx.update(g, state)[::-1]  # noqa: E731
        return jax.lax.scan(body, tx.init(gradients[0]), gradients)[1]

    # A mean with decay b = 1/4 of unit noise has the variance (1 - b) / (1 + b) = 3/5.
    for b0 in (-0.5, 0.0, 0.9):
        variance = float(jnp.var(last(b0, noise)[20:]))
        # Each of 2000 columns has 180 steps, no more correlated than one in four: a relative deviation of
        # sqrt(2 * 4 / (2000 * 180)) = 0.005; four of them.
        np.testing.assert_allclose(variance, 0.6, rtol=0.02)
        signal = last(b0, jnp.ones((40, 1)))[-1]
        # what is left of the start: 0.5^40
        assert_equal(signal, jnp.ones(1) / np.hypot(1 + b0, b0), rtol=1e-11)
