"""Adam on clipped gradients (Chezhegov et al., 2024)."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_without_clipping_it_is_adam(x64: None) -> None:
    gradients = [normal(i, 6) for i in range(5)]
    want = updates(gk.adam(0.1), gradients[0], gradients)
    assert_equal(updates(gk.clip_adam(0.1, max_norm=np.inf), gradients[0], gradients), want)


@pytest.mark.parametrize("bias_correction", [False, True])
def test_second_moment_of_the_gradients_before(bias_correction: bool, x64: None) -> None:
    """The equations with a copy of the previous gradient, which the state without a copy must equal."""
    gradients = [3 * normal(i, 6) for i in range(6)]
    b1, b2, eta, eps = 0.7, 0.8, 0.6, 1e-3
    tx = gk.clip_adamd(
        0.1,
        b1=b1,
        b2=b2,
        eps=eps,
        max_norm=1.5,
        clipping="elementwise",
        reweight=eta,
        initial_accumulator_value=0.3,
        bias_correction=bias_correction,
    )
    m, v, before = np.zeros(6), np.full(6, 0.3), np.zeros(6)
    for t, (g, u) in enumerate(zip(gradients, updates(tx, gradients[0], gradients), strict=True), 1):
        c = np.clip(g, -1.5, 1.5)
        m, v, before = b1 * m + (1 - b1) * c, b2 * v + eta * (1 - b2) * before**2, c
        c1, c2 = (1 - b1**t, 1 - b2**t) if bias_correction else (1, 1)
        assert_equal(u, -0.1 * (m / c1) / (np.sqrt(v / c2) + eps))


def test_the_first_step_does_not_depend_on_the_norm_of_a_clipped_gradient(x64: None) -> None:
    g = normal(0, 6)
    tx = gk.clip_adamd(0.1, b1=0.0, b2=0.5, eps=0.0, initial_accumulator_value=8.0, clipping="global")
    want = -0.1 * g / jnp.linalg.norm(g) / 2
    for scale in (10.0, 1e6):
        assert_equal(updates(tx, g, [scale * g])[0], want)


def test_the_gradient_is_clipped_before_both_moments(x64: None) -> None:
    """Scaling gradients that are all clipped changes nothing, eps or not."""
    gradients = [normal(i, 6) for i in range(5)]
    tx = gk.clip_adam(0.1, max_norm=1e-2, eps=1e-3, clipping="global")
    near, far = (updates(tx, gradients[0], [s * g for g in gradients]) for s in (1.0, 100.0))
    assert_equal(near, far)


def test_delay_needs_a_start() -> None:
    with pytest.raises(ValueError, match=r"initial_accumulator_value must be in \(0, inf\)"):
        gk.clip_adamd(0.1, initial_accumulator_value=0.0)
