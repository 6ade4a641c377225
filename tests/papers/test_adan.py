"""Adan (Xie et al., 2022)."""

import jax.numpy as jnp

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_constant_gradients_are_adam(x64: None) -> None:
    g = normal(0, 7)
    ours = updates(gk.adan(0.1, b1=0.8, b3=0.9), g, [g] * 5)
    assert_equal(ours, updates(gk.adam(0.1, b1=0.8, b2=0.9), g, [g] * 5))


def test_differences_are_weighted_by_b2(x64: None) -> None:
    """With b1 = b3 = 0 and gradients 0, then 1: m = 1, d = (1 - b2) / (1 - b2^2), n = (1 + b2)^2; a weight of 1 - b2,
    as in a port, gives another number."""
    g, b2 = jnp.ones(2), 0.92
    got = updates(gk.scale_by_adan(b1=0.0, b2=b2, b3=0.0, eps=0.0), g, [0 * g, g])[1]
    want = (1 + b2 / (1 + b2)) / (1 + b2)
    assert_equal(got, jnp.full(2, want), rtol=1e-10)
    assert abs(want - (1 + (1 - b2) / (1 + b2)) / (1 + 1 - b2)) > 0.1


def test_proximal_and_decoupled_decay(x64: None) -> None:
    x = normal(0, 4)
    assert_equal(x + updates(gk.adan(0.1, weight_decay=0.5), x, [0 * x])[0], x / 1.05)
    assert_equal(updates(gk.adan(0.1, weight_decay=0.5, proximal=False), x, [0 * x])[0], -0.05 * x)


def test_clipping_of_the_gradients(x64: None) -> None:
    """Only a change of the norm shows the clip: the first gradient has norm 1, the second 100."""
    g = normal(0, 4)
    g = g / jnp.linalg.norm(g)
    ours = updates(gk.adan(0.1, max_norm=1.0), g, [g, 100 * g])
    # Clipped norms are short of the limit by at most a share of 1e-6, as torch has it.
    assert_equal(ours, updates(gk.adan(0.1), g, [g, g]), rtol=1e-4)
