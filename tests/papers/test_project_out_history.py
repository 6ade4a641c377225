"""The component in the low-variance directions of the path so far is removed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk


def run(rows: np.ndarray, g: np.ndarray, **how: object) -> np.ndarray:
    tx = gk.project_out_history(len(rows), **how)
    update, state, out = jax.jit(tx.update), tx.init(jnp.zeros(rows.shape[1])), []
    for x in rows:
        u, state = update(jnp.asarray(g), state, jnp.asarray(x))
        out.append(np.asarray(u))
    return np.stack(out)


def test_is_the_projection_of_the_principal_components(x64: None) -> None:
    """Six coordinates of decreasing spread, the last of which never moves: the third and fourth fall behind 99.9 %."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((8, 6)) * [10, 1, 1e-2, 1e-3, 1e-4, 0]
    g = rng.standard_normal(6)
    got = run(rows, g, variance=1e-3)
    np.testing.assert_array_equal(got[:-1], np.tile(g, (7, 1)))  # before the first refresh
    _, s, V = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    kept = int(np.argmax(np.cumsum(s**2) / np.sum(s**2) > 1 - 1e-3)) + 1
    E = V[kept:5]
    assert 0 < kept < 5
    np.testing.assert_allclose(got[-1], g - E.T @ (E @ g), atol=1e-12)
    assert abs(got[-1][5] - g[5]) < 1e-12  # a direction that was never visited
    np.testing.assert_allclose(run(rows, got[-1], variance=1e-3)[-1], got[-1], atol=1e-12)  # idempotent
    np.testing.assert_allclose(run(rows, V[0], variance=1e-3)[-1], V[0], atol=1e-12)  # what is kept is untouched


def test_standardized_components_are_other_ones(x64: None) -> None:
    rng = np.random.default_rng(1)
    rows, g = rng.standard_normal((8, 3)) * [10, 1, 0.1], rng.standard_normal(3)
    z = (rows - rows.mean(0)) / rows.std(0)
    _, s, V = np.linalg.svd(z, full_matrices=False)
    kept = int(np.argmax(np.cumsum(s**2) / np.sum(s**2) > 0.6)) + 1
    E = V[kept:]
    np.testing.assert_allclose(run(rows, g, variance=0.4, standardize=True)[-1], g - E.T @ (E @ g), atol=1e-12)


def test_parameters_that_stay_remove_nothing_and_large_leaves_are_refused() -> None:
    np.testing.assert_array_equal(run(np.ones((3, 2), np.float32), np.ones(2, np.float32))[-1], [1, 1])
    with pytest.raises(ValueError, match="at most 8192 entries"):
        gk.project_out_history().init({"w": jnp.zeros(9000)})
