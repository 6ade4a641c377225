"""Corrected weight decay (Defazio, 2025)."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, descend, normal, updates


def test_constant_rate_is_plain_decay(x64: None) -> None:
    x = normal(0, 5)
    plain = updates(gk.add_decayed_weights(0.3), x, [x, x])
    assert_equal(updates(gk.corrected_weight_decay(0.3, 0.1), x, [x, x]), plain)
    assert_equal(updates(gk.corrected_weight_decay(0.3, lambda step: 0.1, peak_value=0.1), x, [x, x]), plain)


def _balance(rate: float, corrected: bool) -> float:
    """|g| / |x| of a scale-invariant weight in the plane, whose gradient is orthogonal to it and has norm 1 / |x|."""
    decay = (
        gk.corrected_weight_decay(0.5, lambda step: rate, peak_value=0.1) if corrected else gk.add_decayed_weights(0.5)
    )
    tx = optax.chain(decay, gk.scale_by_learning_rate(rate))
    x = descend(tx, jnp.asarray([1.0, 0.0]), lambda x: jnp.stack([-x[1], x[0]]) / jnp.vdot(x, x), 1500)[-1]
    return 1 / float(jnp.vdot(x, x))


def test_balance_does_not_depend_on_the_rate(x64: None) -> None:
    """|x|^2 grows by rate^2 / |x|^2 and shrinks by 2 rate decay |x|^2, to first order in the decay of a step: the ratio
    is sqrt(2 decay / rate), and with the correction sqrt(2 decay / peak) at every rate. The second order of the decay,
    rate decay / 2, is at most 2.5 % of it."""
    for rate in (0.1, 0.05):
        assert _balance(rate, corrected=True) == pytest.approx(np.sqrt(2 * 0.5 / 0.1), rel=0.025)
        assert _balance(rate, corrected=False) == pytest.approx(np.sqrt(2 * 0.5 / rate), rel=0.025)


def test_total_decay_over_a_ramp_is_a_third(x64: None) -> None:
    """The sum of (1 - k / T)^2 over T steps is T / 3 + 1 / 2 + 1 / (6 T)."""
    T, x = 10, jnp.ones(1)
    rate = optax.linear_schedule(0.2, 0.0, T)
    tx = optax.chain(gk.corrected_weight_decay(0.5, rate, peak_value=0.2), gk.scale_by_learning_rate(rate))
    state, total = tx.init(x), 0.0
    for _ in range(T):
        u, state = tx.update(0 * x, state, x)
        total -= float(u[0])
    # The schedule of optax is in float32.
    assert total == pytest.approx(0.5 * 0.2 * (T / 3 + 1 / 2 + 1 / (6 * T)), rel=1e-6)


def test_head_is_not_corrected(x64: None) -> None:
    x = {"layer": {"kernel": normal(0, 4, 4), "bias": normal(1, 4)}, "head": {"kernel": normal(2, 4, 9)}}
    tx = gk.corrected_weight_decay(1.0, lambda step: 0.1, peak_value=0.4)
    zero = {name: {k: 0 * w for k, w in leaf.items()} for name, leaf in x.items()}
    u, _ = tx.update(zero, tx.init(x), x)
    factors = {name: {k: float((w / x[name][k]).mean()) for k, w in leaf.items()} for name, leaf in u.items()}
    head = gk.leaves.by_role("head")(x)["head"]["kernel"]
    assert factors["layer"]["kernel"] == pytest.approx(0.25) and head
    assert factors["head"]["kernel"] == pytest.approx(1.0)


def test_schedule_without_its_peak_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"corrected_weight_decay: peak_value is None .* write peak_value="):
        gk.corrected_weight_decay(0.1, lambda step: 0.1)
