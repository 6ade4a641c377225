"""SAG and SAGA (as in Bottou, Curtis, Nocedal, 2016)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal

N, D = 50, 5
ESTIMATORS = {"saga": gk.saga_estimator, "sag": gk.sag_estimator}


def filled(tx: optax.GradientTransformationExtraArgs, gradients: jax.Array) -> Any:
    """The state after every example was seen once."""
    state = tx.init(gradients[0])
    for j, g in enumerate(gradients):
        _, state = tx.update(g, state, index=j)
    return state


def test_saga_is_unbiased_and_sag_is_not(x64: None) -> None:
    old, new = normal(0, 6, D), normal(1, 6, D)
    means = {}
    for name, make in ESTIMATORS.items():
        state = filled(make(6), old)
        assert_equal(state.table, old)
        assert_equal(state.mean, jnp.mean(old, 0))
        means[name] = jnp.mean(jnp.stack([make(6).update(g, state, index=j)[0] for j, g in enumerate(new)]), 0)
    assert_equal(means["saga"], jnp.mean(new, 0))
    assert_equal(means["sag"], jnp.mean(old, 0) + jnp.mean(new - old, 0) / 6)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_against_a_table_in_numpy(name: str, x64: None) -> None:
    rng = np.random.default_rng(3)
    tx, table = ESTIMATORS[name](4), np.zeros((4, D))
    state = tx.init(jnp.zeros(D))
    for j in rng.integers(0, 4, 12):
        g = rng.standard_normal(D)
        want = (g - table[j]) / (1 if name == "saga" else 4) + table.mean(0)
        v, state = tx.update(jnp.asarray(g), state, index=jnp.asarray(j))
        table[j] = g
        assert_equal(v, want)
        assert_equal((state.table, state.mean), (table, table.mean(0)), rtol=1e-11)


def test_indices_outside_are_the_ends_and_bad_ones_are_refused(x64: None) -> None:
    tx, g = gk.saga_estimator(3), jnp.ones(2)
    for index, slot in ((-1, 0), (7, 2)):
        _, state = tx.update(g, tx.init(g), index=index)
        assert np.flatnonzero(state.table.any(1)).tolist() == [slot]
    with pytest.raises(ValueError, match="saga_estimator needs the extra argument index"):
        tx.update(g, tx.init(g))
    for index in (1.0, jnp.arange(2)):
        with pytest.raises(ValueError, match="index must be one integer"):
            tx.update(g, tx.init(g), index=index)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_converges_linearly_where_sgd_stalls(name: str, x64: None) -> None:
    """Ridge regression at one constant rate, examples drawn at random."""
    X, y = normal(0, N, D), normal(1, N)
    A, b = np.asarray(X.T @ X) / N + 0.1 * np.eye(D), np.asarray(X.T @ y) / N
    solution, indices = np.linalg.solve(A, b), jnp.asarray(np.random.default_rng(0).integers(0, N, 6000))

    def distances(head: optax.GradientTransformation) -> np.ndarray:
        tx = optax.with_extra_args_support(optax.chain(head, gk.sgd(0.03)))

        def step(carry: tuple, j: jax.Array) -> tuple:
            w, state = carry
            g = X[j] * (jnp.dot(X[j], w) - y[j]) + 0.1 * w
            u, state = tx.update(g, state, w, index=j)
            return (w + u, state), jnp.linalg.norm(w - solution)

        start = jnp.zeros(D)
        return np.asarray(jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), indices)[1])())

    reduced, sgd = distances(ESTIMATORS[name](N)), distances(optax.identity())
    # Every 1500 steps the distance falls at least to a hundredth, until it is rounding error.
    for k in (1500, 3000, 4500):
        assert reduced[k] < max(0.01 * reduced[k - 1500], 1e-12)
    assert reduced[-1] < 1e-10 and sgd[3000:].min() > 5e-3
