"""TVLARS and its schedule (Do et al., 2024)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_the_factor_falls_and_bends_at_the_delay(x64: None) -> None:
    phi = np.asarray(gk.schedules.tvlars_schedule(0.3, delay=7, alpha=0.4, gamma_min=0.02)(jnp.arange(100)))
    t = np.arange(1, 101)
    assert_equal(phi, 1 / (0.4 + np.exp(0.3 * (t - 7))) + 0.02)
    assert np.all(np.diff(phi) < 0)
    assert_equal(phi[6], 1 / 1.4 + 0.02)
    # Far from the bend either way: 1 / alpha + gamma_min, and gamma_min.
    late = gk.schedules.tvlars_schedule(0.3, delay=1000, alpha=0.4, gamma_min=0.02)
    assert_equal(late(jnp.array([0, 10**6])), np.array([1 / 0.4 + 0.02, 0.02]))


def test_without_decay_is_lars(x64: None) -> None:
    x = {"bias": normal(0, 3), "kernel": normal(1, 4, 3)}
    gradients = [jax.tree.map(lambda w, i=i: jnp.sin(w + i), x) for i in range(4)]
    got = updates(gk.tvlars(0.5, trust_coefficient=0.1, decay_rate=0.0, alpha=0.25, gamma_min=0.2), x, gradients)
    lars = gk.lars(0.5, weight_decay=5e-4, trust_coefficient=0.1 * (1 / 1.25 + 0.2), denominator="joint")
    assert_equal(got, updates(lars, x, gradients))


def test_the_factor_is_inside_the_momentum_and_of_the_ratio_alone(x64: None) -> None:
    """A step of every adapted layer is learning_rate trust_coefficient phi_t |w| before momentum; a bias has no phi."""
    x = {"bias": normal(0, 3), "kernel": normal(1, 4, 3)}
    g = jax.tree.map(lambda w: 50 * jnp.sin(w), x)
    hyper = {"trust_coefficient": 0.01, "weight_decay": 0.0, "decay_rate": 0.7, "delay": 2}
    plain = [gk.tvlars(2.0, momentum=m, **hyper) for m in (0.0, 0.9)]
    alone, with_momentum = (updates(tx, jax.tree.map(jnp.copy, x), [g, g]) for tx in plain)
    moved = x["kernel"]
    for t, u in enumerate(alone, 1):
        phi = 1 / (1 + np.exp(0.7 * (t - 2)))
        assert_equal(jnp.linalg.norm(u["kernel"]), 2.0 * 0.01 * phi * jnp.linalg.norm(moved))
        assert_equal(u["bias"], -2.0 * g["bias"])
        moved = moved + u["kernel"]
    assert_equal(with_momentum[1]["kernel"], 0.9 * with_momentum[0]["kernel"] + alone[1]["kernel"], rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_both_norms_are_clamped(scale: float, x64: None) -> None:
    w, g = scale * normal(0, 4, 3), 1e3 * normal(1, 4, 3)
    tx = gk.tvlars(1.0, weight_decay=0.0, trust_coefficient=1.0, decay_rate=0.0, norm_max=10.0)
    assert_equal(updates(tx, w, [g])[0], -0.5 * min(float(jnp.linalg.norm(w)), 10.0) / 10.0 * g)
