"""DIFF2 (Murata, Suzuki, 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.parallel import diff2

A = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2.0, (6, 3)))
POINTS = [jnp.asarray(np.random.default_rng([1, t]).standard_normal(3)) for t in range(5)]
SILENT: Any = {"noise_multiplier": 0.0, "difference_noise_multiplier": 0.0}
OPEN: Any = {"clip": np.inf, "difference_clip": np.inf}


def loss(x: Any, a: Any) -> Any:
    return jnp.sum(a * x**4) / 4


def gradient(x: Any) -> np.ndarray:
    return np.asarray(A, np.float64).mean(0) * np.asarray(x) ** 3


def test_without_clipping_and_noise_the_differences_add_up_to_the_gradient(x64: None) -> None:
    rules = diff2(loss, restart=4, **SILENT, **OPEN)
    a, *points = (jnp.asarray(np.asarray(x, np.float64)) for x in (A, *POINTS))
    state, step = rules.init(points[0]), jax.jit(rules.estimate)
    for x in points:
        v, state = step(x, a, state, jax.random.key(0))
        np.testing.assert_allclose(v, gradient(x), rtol=1e-12, atol=1e-14)


def test_with_a_restart_in_every_round_it_is_dp_gd() -> None:
    """The clipped mean, and noise of the same size, of `differentially_private_aggregate`."""
    rules = diff2(loss, clip=0.7, restart=1, **SILENT)
    tx = gk.aggregation.differentially_private_aggregate(0.7, 0.0, key=0)
    x = POINTS[0]
    rows = jax.vmap(lambda a: jax.grad(loss)(x, a))(A)
    want, _ = tx.update(rows, tx.init(x), x)
    state = rules.init(x)
    for _ in range(2):
        v, state = rules.estimate(x, A, state, 0)
        np.testing.assert_allclose(v, np.asarray(want), rtol=1e-5)


def test_where_nothing_moves_there_is_no_noise() -> None:
    rules = diff2(loss, restart=3, noise_multiplier=1.0, difference_noise_multiplier=5.0)
    x = POINTS[0]
    first, state = rules.estimate(x, A, rules.init(x), 1)
    second, state = rules.estimate(x, A, state, 2)
    np.testing.assert_array_equal(first, second)
    third, _ = rules.estimate(x + 0.1, A, state, 3)
    assert np.abs(third - second).max() > 1e-4


def test_a_difference_is_clipped_at_a_multiple_of_the_step_and_its_noise_shrinks_with_it() -> None:
    """One example: of a step of length s the change of v is C2 s at most; noise of the deviation sigma C2 s / n."""
    x, a = jnp.ones(2), jnp.array([[100.0, 0.0]])
    quiet = diff2(loss, clip=1e6, difference_clip=0.5, restart=9, **SILENT)
    before, state = quiet.estimate(x, a, quiet.init(x), 0)
    for s in (1e-2, 1e-1):
        v, _ = quiet.estimate(x + jnp.array([s, 0.0]), a, state, 0)
        np.testing.assert_allclose(jnp.linalg.norm(v - before), 0.5 * s, rtol=1e-3)
    loud = diff2(lambda x, a: 0.0 * jnp.sum(x), difference_clip=0.5, restart=9, noise_multiplier=0.0)
    x, batch = jnp.zeros(4000), jnp.zeros(5)
    _, state = loud.estimate(x, batch, loud.init(x), 0)
    for s in (1e-2, 1.0):
        v, _ = loud.estimate(x.at[0].set(s), batch, state, 1)
        # The sample deviation of 4000 normal numbers is within 5 / sqrt(8000) of the true one.
        np.testing.assert_allclose(jnp.std(v), 0.5 * s / 5, rtol=5 / 8000**0.5)


def test_replicas_share_the_batch_and_the_noise() -> None:
    """Two replicas of three examples each are one of six."""
    x = POINTS[0]
    whole, split = diff2(loss, restart=2), diff2(loss, restart=2, axis_name="replica")
    state, states = whole.init(x), jax.tree.map(lambda x: jnp.stack([x, x]), whole.init(x))
    step = jax.vmap(split.estimate, axis_name="replica", in_axes=(None, 0, 0, None))
    for t in range(3):
        v, state = whole.estimate(x + t, A, state, t)
        got, states = step(x + t, A.reshape(2, 3, 3), states, t)
        np.testing.assert_allclose(got, np.stack([v, v]), rtol=1e-5, atol=1e-6)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="restart must be an integer >= 1"):
        diff2(loss, restart=0)
    with pytest.raises(ValueError, match=r"difference_clip must be in \(0, inf\]"):
        diff2(loss, difference_clip=0.0)
    rules = diff2(loss)
    with pytest.raises(ValueError, match="batch must have the same leading axis of examples"):
        rules.estimate(POINTS[0], {"a": jnp.ones(3), "b": jnp.ones(())}, rules.init(POINTS[0]), 0)
