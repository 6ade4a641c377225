"""Task vectors and ATM: gradient descent on all tasks, task arithmetic, and model averaging are its special cases."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.parallel import alternating_tuning_merging, local_updates, task_arithmetic, task_vector

T, N = 3, 4
A = 0.5 + np.random.default_rng(0).random((T, N))
C = np.random.default_rng(1).standard_normal((T, N))


def train(tx: Any, steps: int) -> Any:
    x = jnp.ones((T, N))
    state = jax.vmap(tx.init)(x)

    def step(x: Any, state: Any, a: Any, c: Any) -> Any:
        u, state = tx.update(a * (x - c), state, x)
        return optax.apply_updates(x, u), state

    program, path = jax.jit(jax.vmap(step, axis_name="replica")), []
    for _ in range(steps):
        x, state = program(x, state, jnp.asarray(A), jnp.asarray(C))
        path.append(np.asarray(x))
    return np.stack(path), state


def test_one_step_of_gradient_descent_per_round_is_multi_task_learning(x64: None) -> None:
    path, _ = train(alternating_tuning_merging(gk.sgd(0.1), sync_every=1, scale=1.5), 6)
    x = np.ones(N)
    for t in range(6):
        x = x - 0.15 * (A * (x - C)).mean(0)
        np.testing.assert_allclose(path[t], np.tile(x, (T, 1)), rtol=1e-12)


def test_one_round_is_task_arithmetic(x64: None) -> None:
    """The scale of a sum of T vectors is a T-th of that of their mean."""
    path, _ = train(alternating_tuning_merging(gk.sgd(0.1), sync_every=4, scale=0.9), 4)
    tuned = C + (1 - 0.1 * A) ** 4 * (1 - C)
    vectors = [task_vector(jnp.ones(N), jnp.asarray(t)) for t in tuned]
    np.testing.assert_allclose(path[3][0], task_arithmetic(jnp.ones(N), vectors, 0.3), rtol=1e-12)


def test_a_scale_of_one_is_the_mean_of_models(x64: None) -> None:
    path, _ = train(alternating_tuning_merging(gk.sgd(0.1), sync_every=3), 7)
    np.testing.assert_allclose(path, train(local_updates(gk.sgd(0.1), sync_every=3), 7)[0], rtol=1e-12)


def test_tuning_starts_afresh_in_every_round(x64: None) -> None:
    """The first step after a merge is the first of Adam, of the size of its rate; momenta of local updates go on."""
    path, _ = train(alternating_tuning_merging(gk.adam(0.01), sync_every=3), 4)
    np.testing.assert_allclose(np.abs(path[3] - path[2]), 0.01, rtol=1e-4)
    other, _ = train(local_updates(gk.adam(0.01), sync_every=3), 4)
    assert np.abs(np.abs(other[3] - other[2]) - 0.01).max() > 1e-4


def test_an_aggregator_of_many_gradients_merges(x64: None) -> None:
    """The mean as an aggregator is the mean; another one sees the task vectors of all, as gradients."""
    want, _ = train(alternating_tuning_merging(gk.sgd(0.1), sync_every=2, scale=0.7), 4)
    mean = alternating_tuning_merging(gk.sgd(0.1), sync_every=2, scale=0.7, combine=gk.aggregation.mean())
    np.testing.assert_allclose(train(mean, 4)[0], want, rtol=1e-12)
    tx = alternating_tuning_merging(gk.sgd(0.1), sync_every=2, combine=gk.aggregation.mgda())
    path, _ = train(tx, 2)
    vectors = 1.0 - (C + (1 - 0.1 * A) ** 2 * (1 - C))
    own = gk.aggregation.mgda()
    short, _ = own.update(jnp.asarray(vectors), own.init(jnp.ones(N)))
    np.testing.assert_allclose(path[1], np.tile(1.0 - np.asarray(short), (T, 1)), rtol=1e-9)


def test_vectors_of_mixed_dtypes_and_bad_input() -> None:
    base = {"w": jnp.ones(2, jnp.bfloat16)}
    vector = task_vector(base, {"w": jnp.full(2, 1.5, jnp.bfloat16)})
    assert vector["w"].dtype == jnp.float32
    merged = task_arithmetic(base, [vector, vector], -1.0)
    assert merged["w"].dtype == jnp.bfloat16 and merged["w"].tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="task_vectors must be one tree or more"):
        task_arithmetic(base, [])
    with pytest.raises(ValueError, match="do not match"):
        task_vector(base, {"v": jnp.ones(2)})
    with pytest.raises(ValueError, match="scale must be"):
        alternating_tuning_merging(gk.sgd(0.1), scale=-1.0)
