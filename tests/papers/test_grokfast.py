"""Grokfast (Lee et al., 2024)."""

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_no_weight_is_the_identity(x64: None) -> None:
    gradients = [normal(i, 4) for i in range(3)]
    assert_equal(updates(gk.grokfast_ema(lamb=0.0), gradients[0], gradients), gradients)


def test_constant_gradient_is_amplified(x64: None) -> None:
    g = normal(0, 4)
    assert_equal(updates(gk.grokfast_ema(0.9, lamb=5.0), g, [g] * 4), [6 * g] * 4)


def test_mean_starts_at_the_first_gradient(x64: None) -> None:
    a, b = normal(0, 4), normal(1, 4)
    assert_equal(updates(gk.grokfast_ema(0.9, lamb=2.0), a, [a, b])[1], b + 2 * (0.9 * a + 0.1 * b))


def test_slow_part_gains_and_fast_part_does_not(x64: None) -> None:
    """A constant plus an alternating gradient: the constant comes out 1 + lamb times as long, the alternating part at
    most (1 + lamb (1 - alpha)/(1 + alpha)) times."""
    slow, fast = normal(0, 4), normal(1, 4)
    out = updates(gk.grokfast_ema(0.98, lamb=2.0), slow, [slow + (-1) ** t * fast for t in range(1200)])
    mean, swing = (out[-1] + out[-2]) / 2, (out[-2] - out[-1]) / 2
    # what is left of the first gradient: 0.98^1200 = 3e-11
    assert_equal(mean, 3 * slow, rtol=1e-8, atol=1e-8)
    assert_equal(swing, (1 + 2 * 0.02 / 1.98) * fast, rtol=1e-8, atol=1e-8)
