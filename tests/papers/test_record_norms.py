"""The norms of a run: what is kept of every step, and the second run that is refined from them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk


def test_norms_of_every_step_and_the_updates_as_they_are() -> None:
    """Over all leaves together, in their widest dtype; steps beyond the length are dropped."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.zeros((3, 2)), "low": jnp.zeros(4, jnp.bfloat16)}
    steps = [{"w": rng.normal(size=(3, 2)), "low": rng.normal(size=4)} for _ in range(5)]
    steps = [{"w": jnp.asarray(g["w"], jnp.float32), "low": jnp.asarray(g["low"], jnp.bfloat16)} for g in steps]
    for ord in (1, 2):
        tx = gk.record_norms(4, ord=ord)
        state, update = tx.init(params), jax.jit(tx.update)
        for g in steps:
            out, state = update(g, state)
            for name in g:
                np.testing.assert_array_equal(np.asarray(out[name], np.float32), np.asarray(g[name], np.float32))
        flat = [np.concatenate([np.asarray(x, np.float64).ravel() for x in g.values()]) for g in steps]
        want = [np.linalg.norm(x, ord) for x in flat[:4]]
        # Ten float32 additions.
        np.testing.assert_allclose(state.norms, want, rtol=10 * 2.0**-24)
        assert state.norms.dtype == jnp.float32 and int(state.count) == 5


def test_a_second_run_takes_its_rates_from_the_first() -> None:
    """First in a chain it sees gradients, behind a clip the clipped ones; either way the next schedule follows."""
    tx = optax.chain(gk.record_norms(6), gk.clip_by_global_norm(1.0), gk.sgd(0.1))
    x, update = jnp.zeros(2), jax.jit(tx.update)
    state = tx.init(x)
    scales = np.array([4.0, 4.0, 2.0, 2.0, 1.0, 1.0])
    for scale in scales:
        _, state = update(jnp.array([0.6, 0.8]) * scale, state, x)
    norms = gk.find(state, "record_norms/norms")
    np.testing.assert_allclose(norms, scales, rtol=1e-6)
    refined = gk.schedules.refined_schedule(norms, smoothing=0.0)
    # w = 1 / G^2 up to a factor: 1, 1, 4, 4, 16, 16, each times the sum of those after it.
    want = np.array([41, 40, 144, 128, 256, 0]) / 256
    np.testing.assert_allclose(refined, want, rtol=1e-5)
    assert gk.schedules.array_schedule(0.3 * refined)(4) == np.float32(0.3)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="total_steps must be an integer >= 1"):
        gk.record_norms(0)
    with pytest.raises(ValueError, match="ord must be an integer >= 1 and <= 2"):
        gk.record_norms(3, ord=3)
