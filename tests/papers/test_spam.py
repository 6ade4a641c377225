"""SPAM (Huang et al., 2025)."""

import jax.numpy as jnp
import numpy as np

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_spike_of_one_entry_changes_that_entry_alone(x64: None) -> None:
    gradients = [1.0 + 0.1 * normal(i, 4) for i in range(6)]
    spiked = [*gradients[:5], gradients[5].at[1].multiply(40.0)]
    given = {"start_after": 6, "threshold": 50.0, "eps": 0.0}
    plain, ours = (updates(gk.spam(0.1, **given), gradients[0], g)[-1] for g in (gradients, spiked))
    loose = updates(gk.spam(0.1, **{**given, "threshold": 1e9}), gradients[0], spiked)[-1]
    assert_equal(ours[jnp.asarray([0, 2, 3])], plain[jnp.asarray([0, 2, 3])])
    # By hand: the entry becomes sqrt(50 v), of the second moment before it.
    m = v = 0.0
    for g in (float(g[1]) for g in gradients[:5]):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    g = np.sqrt(50 * v)
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    assert_equal(ours[1], -0.1 * np.sqrt(1 - 0.999**6) / (1 - 0.9**6) * m / np.sqrt(v))
    assert abs(float(ours[1] - loose[1])) > 1e-3


def test_step_after_a_reset_has_one_hundredth_of_the_rate(x64: None) -> None:
    """The moments are those of one gradient, and the corrections those of all steps."""
    g = normal(0, 5)
    got = updates(gk.spam(0.1, reset_every=4, eps=0.0), g, [g] * 4)
    size = np.sqrt(1 - 0.999**4) / (1 - 0.9**4) * 0.1 / np.sqrt(0.001)
    assert_equal(got[3], -0.1 * 0.01 * size * jnp.sign(g), rtol=1e-10)
    assert_equal(got[2], -0.1 * jnp.sign(g), rtol=1e-10)


def test_entry_without_a_gradient_so_far_is_not_held_at_zero(x64: None) -> None:
    g = jnp.asarray([1.0, 0.0])
    got = updates(gk.spam(0.1, start_after=1), g, [g, g, jnp.asarray([1.0, 1.0])])
    assert abs(float(got[2][1])) > 0.01


def test_decay_comes_after_the_step(x64: None) -> None:
    x = normal(0, 5)
    got = x + updates(gk.spam(0.1, weight_decay=0.5, eps=0.0), x, [x])[0]
    assert_equal(got, (x - 0.1 * jnp.sign(x)) * 0.95)
