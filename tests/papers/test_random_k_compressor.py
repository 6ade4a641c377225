"""Random entries with memory (Stich, Cordonnier, Jaggi, 2018)."""

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import parallel
from tests.parallel.exchanges import W, gradients, run


def test_all_replicas_send_the_same_entries_and_the_mean_is_exact_there(x64: None) -> None:
    said, _ = run(parallel.random_k_compressor(0.25, key=1), steps=3)
    patterns = []
    for t, mean in enumerate(said):
        there = np.asarray(mean["kernel"][0]) != 0
        assert there.sum() == 6
        want = np.asarray(gradients(t)["kernel"]).mean(0)
        np.testing.assert_allclose(mean["kernel"][0][there], want[there], rtol=1e-12)
        patterns.append(tuple(there.ravel()))
    assert len(set(patterns)) == 3


def test_every_entry_has_its_turn() -> None:
    """With memory, after many steps no entry waits for longer than chance allows."""
    g = jnp.ones((W, 16))
    tx = parallel.error_feedback(parallel.random_k_compressor(0.25, key=0))
    state, step = parallel.init_replicas(tx, g), jax.jit(jax.vmap(tx.update, axis_name="replica"))
    total = np.zeros(16)
    for _ in range(60):
        mean, state = step(g, state)
        total += np.asarray(mean[0])
    np.testing.assert_allclose(total + np.asarray(state.error[0]), 60, rtol=1e-5)
    # A wait of 40 steps has the chance 0.75^40 = 1e-5, for 16 entries.
    assert np.asarray(state.error).max() < 40
