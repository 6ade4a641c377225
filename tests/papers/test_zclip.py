"""ZClip (Kumar et al., 2025)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from tests.by_numpy import by_numpy
from tests.papers.replay import assert_equal


def run(norms: list[float], **given: Any) -> tuple[list[float], Any]:
    """The norms of what leaves, for gradients of these norms, and the last state."""
    tx: optax.GradientTransformation = gk.zclip(**given)
    state, update, out = tx.init(jnp.zeros(2)), by_numpy(tx.update), []
    for n in norms:
        u, state = update(n * jnp.asarray([0.6, 0.8]), state)
        out.append(float(np.linalg.norm(np.asarray(u))))
    return out, state


def test_constant_norms_are_never_clipped(x64: None) -> None:
    out, state = run([2.0] * 12, warmup_steps=4, max_norm=None)
    assert_equal(out, [2.0] * 12)
    assert_equal(state.var, jnp.zeros(()))


def test_statistics_of_the_warm_up_are_of_unclipped_norms(x64: None) -> None:
    out, state = run([1.0, 3.0, 8.0], warmup_steps=3, max_norm=1.0)
    assert_equal([state.mean, state.var], [np.float64(4.0), np.var([1.0, 3.0, 8.0])])
    # The factor is max_norm / (n + 1e-6).
    assert_equal(out, [n / (n + 1e-6) for n in (1.0, 3.0, 8.0)])


def test_larger_spikes_are_cut_harder(x64: None) -> None:
    """The limit is mean + threshold^2 std / z, below mean + threshold std."""
    warm = [1.0, 3.0, 1.0, 3.0]
    limits = []
    for spike in (6.0, 20.0, 400.0):
        out, _ = run([*warm, spike], warmup_steps=4, max_norm=None)
        z = (spike - 2.0) / (1.0 + 1e-6)
        assert_equal(out[-1], (2.0 + 2.5**2 / z) * spike / (spike + 1e-6))
        limits.append(out[-1])
    assert 4.5 > limits[0] > limits[1] > limits[2]
    assert_equal(run([*warm, 400.0], warmup_steps=4, max_norm=None, clip_option="mean")[0][-1], 2.0, rtol=1e-8)


def test_spikes_enter_the_statistics_as_their_limit_or_not_at_all(x64: None) -> None:
    given: dict[str, Any] = {"warmup_steps": 2, "max_norm": None, "mode": "percentile", "alpha": 0.5}
    _, state = run([1.0, 3.0, 100.0], **given)
    assert_equal([state.mean, state.var], [np.float64(3.25), np.float64(0.5 + 0.5 * 1.25**2)])
    _, state = run([1.0, 3.0, 100.0], skip_update_on_spike=True, **given)
    assert_equal([state.mean, state.var], [np.float64(2.0), np.float64(1.0)])


def test_what_is_not_finite_enters_no_statistic(x64: None) -> None:
    bad = [1.0, float("nan"), 3.0, float("inf"), 2.0]
    out, state = run(bad, warmup_steps=2, max_norm=None)
    _, clean = run([1.0, 3.0, 2.0], warmup_steps=2, max_norm=None)
    assert np.isnan(out[1]) and np.isinf(out[3])
    assert_equal([state.count, state.mean, state.var], [clean.count, clean.mean, clean.var])
