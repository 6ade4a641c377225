"""Clipping by the global norm (Pascanu, Mikolov, Bengio, 2013)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_equals_optax_and_bounds_the_norm(x64: None) -> None:
    g = {"a": normal(0, 3), "b": normal(1, 2, 3)}
    for limit in (0.5, 1.0, 100.0):
        got = updates(gk.clip_by_global_norm(limit), g, [g])[0]
        assert_equal(got, updates(optax.clip_by_global_norm(limit), g, [g])[0])
        assert optax.tree.norm(got) <= limit * (1 + 1e-12)


def test_mean_of_microbatches_is_clipped_not_each(x64: None) -> None:
    """The order matters: clipped halves of opposite outliers cancel to a small mean, which needs no clipping."""
    a, b = jnp.array([10.0, 1.0]), jnp.array([-10.0, 1.0])
    assert_equal(updates(gk.clip_by_global_norm(1.0), a, [(a + b) / 2])[0], jnp.array([0.0, 1.0]))


def test_nonfinite_norms() -> None:
    g = {"a": jnp.array([jnp.inf, 1.0]), "b": jnp.array([jnp.nan])}
    zero = updates(gk.clip_by_global_norm(1.0, nonfinite="zero"), jax.tree.map(jnp.zeros_like, g), [g])[0]
    assert all(not np.any(u) for u in jax.tree.leaves(zero))
    visible = updates(gk.clip_by_global_norm(1.0), jax.tree.map(jnp.zeros_like, g), [g])[0]
    assert np.isnan(visible["a"]).any()


def test_publishes_norm_and_whether_it_clipped() -> None:
    tx = gk.clip_by_global_norm(1.0)
    g = jnp.array([3.0, 4.0])
    _, state = tx.update(g, tx.init(g))
    assert {k: float(v) for k, v in gk.diagnostics.metrics(state).items()} == {"gradient_norm": 5.0, "clipped": 1.0}
    _, state = tx.update(0.1 * g, state)
    assert float(gk.diagnostics.metrics(state)["clipped"]) == 0.0
