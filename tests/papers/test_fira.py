"""Fira (Chen et al., 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates
from tests.papers.test_project_low_rank import fixed


@pytest.mark.parametrize(("alpha", "limit"), [(1.0, 1.01), (0.25, 1.5), (0.5, np.inf)])
def test_the_algorithm(alpha: float, limit: float, x64: None) -> None:
    """In plain NumPy, over a change of the basis."""
    gradients, want = [normal(i, 4, 6) * 1.5**i for i in range(5)], []
    m, v, B, before = np.zeros((2, 6)), np.zeros((2, 6)), np.zeros((4, 2)), None
    for t, g in enumerate(map(np.asarray, gradients)):
        if t % 3 == 0:
            B = fixed(np.linalg.svd(g, full_matrices=False)[0][:, :2])
        R = B.T @ g
        m, v = 0.9 * m + 0.1 * R, 0.999 * v + 0.001 * R**2
        psi = m / (np.sqrt(v) + 1e-6)
        E = (g - alpha * B @ R) * (np.linalg.norm(psi, axis=0) / (np.linalg.norm(R, axis=0) + 1e-8))
        n = np.linalg.norm(E)
        f = 1.0 if before is None else max(1.0, n / ((before + 1e-8) * limit))
        E, before = E / f, n / f
        want.append(-0.1 * (alpha * B @ psi + E) * np.sqrt(1 - 0.999 ** (t + 1)) / (1 - 0.9 ** (t + 1)))
    tx = gk.fira(0.1, rank=2, update_interval=3, alpha=alpha, growth_limit=limit)
    assert_equal(updates(tx, gradients[0], gradients), want, 1e-9, 1e-11)


def test_with_all_directions_it_is_galore(x64: None) -> None:
    """alpha = 1 leaves nothing out: exactly, without a division of rounding by rounding."""
    gradients: list[Any] = [{"kernel": normal(i, 4, 6), "bias": normal(i, 6)} for i in range(4)]
    got = updates(gk.fira(0.1, rank=4, update_interval=2), gradients[0], gradients)
    want = updates(gk.galore(0.1, rank=4, update_interval=2, scale=1.0), gradients[0], gradients)
    assert_equal(got, want, 1e-11, 1e-13)


def test_updates_have_full_rank_and_the_state_of_galore(x64: None) -> None:
    g = normal(0, 4, 6)
    assert np.linalg.matrix_rank(np.asarray(updates(gk.fira(0.1, rank=1), g, [g])[0])) == 4
    shapes = jax.ShapeDtypeStruct((64, 256), jnp.float32)
    words = sum(x.size for x in jax.tree.leaves(jax.eval_shape(gk.fira(0.1, rank=16).init, shapes)) if x.ndim > 1)
    assert words == 64 * 16 + 2 * 16 * 256 + 1


def test_bad_input() -> None:
    for name, value in (("growth_limit", 0.9), ("alpha", -1.0), ("growth_limit", None)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            gk.fira(0.1, **{name: value})
