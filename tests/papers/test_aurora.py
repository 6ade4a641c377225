"""Aurora (Tilde Research, 2026): orthogonal columns, and rows of equal norm."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.leaves import by_path, layout
from tests.by_numpy import by_numpy
from tests.papers.replay import assert_equal, normal, updates


def direction(g: Any, **options: Any) -> Any:
    tx = gk.balance_rows(**{"scale": None, **options})
    return by_numpy(lambda g: tx.update(g, tx.init(g))[0])(g)


def unequal() -> np.ndarray:
    """40 x 8, rows of very unequal size."""
    return np.asarray(normal(0, 40, 8)) * np.exp(2 * np.asarray(normal(1, 40, 1)))


@pytest.mark.parametrize(("steps", "within"), [(1, 0.4), (2, 0.15), (4, 0.04), (8, 0.003)])
def test_rows_approach_one_norm_and_columns_stay_orthogonal(steps: int, within: float, x64: None) -> None:
    """sqrt(n / N) = sqrt(8 / 40). Every two orthogonalisations more leave a third of the distance or less: power 0.5 is
    a damped fixed point iteration."""
    P = np.asarray(direction(unequal(), balance_steps=steps))
    np.testing.assert_allclose(P.T @ P, np.eye(8), atol=1e-10)
    assert np.abs(np.linalg.norm(P, axis=1) / math.sqrt(8 / 40) - 1).max() < within


def test_one_step_normalises_the_rows_of_the_gradient(x64: None) -> None:
    g = unequal()
    unit = g / np.linalg.norm(g, axis=1, keepdims=True)
    U, _, Vt = np.linalg.svd(unit, full_matrices=False)
    np.testing.assert_allclose(direction(g, balance_steps=1, method="svd"), U @ Vt, atol=1e-12)


def test_a_wide_matrix_is_the_transpose_of_a_tall_one(x64: None) -> None:
    g = unequal()
    assert_equal(direction(g.T).T, direction(g))
    scaled = direction({"tall": g, "wide": g.T}, scale="spectral")
    assert_equal(scaled["wide"], math.sqrt(5) * scaled["tall"].T)


def test_square_matrices_are_muons(x64: None) -> None:
    x, gradients = normal(9, 5, 5), [normal(i, 5, 5) for i in range(3)]
    got = updates(gk.aurora(0.1, coefficients="polar_express"), x, gradients)
    want = updates(gk.muon(0.1, coefficients="polar_express", ns_steps=12, weight_decay=0.025), x, gradients)
    assert_equal(got, want, rtol=1e-10)


@pytest.mark.parametrize("steps", [2, 12])
def test_rows_of_zeros_stay_zero(steps: int) -> None:
    """In float32 and for any number of steps: what they are multiplied by must not become infinite."""
    g = unequal().astype(np.float32)
    g[3] = g[17] = 0
    P = np.asarray(direction(g, balance_steps=steps))
    assert np.isfinite(P).all() and not P[[3, 17]].any()
    np.testing.assert_allclose(P.T @ P, np.eye(8), atol=1e-5)
    assert not np.asarray(direction(np.zeros((6, 4), np.float32), balance_steps=steps)).any()


def test_layers_and_fused_weights_are_matrices_of_their_own(x64: None) -> None:
    """Of their own shape: a matrix padded with zeros would be balanced towards another norm."""
    g = {"ScanBlock_0": {"kernel": normal(0, 2, 9, 4)}, "qkv": normal(1, 5, 12)}
    fused = layout((by_path("qkv"), {"splits": (8, 4)}))
    got = direction(g, layout=fused)
    for i in range(2):
        assert_equal(got["ScanBlock_0"]["kernel"][i], direction(g["ScanBlock_0"]["kernel"][i]))
    parts = [direction(part) for part in (g["qkv"][:, :8], g["qkv"][:, 8:])]
    assert_equal(got["qkv"], jnp.concatenate(parts, axis=1))


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"balance_power must be in \(0, 1\]"):
        gk.aurora(0.1, balance_power=0.0)
    with pytest.raises(ValueError, match="balance_steps must be an integer >= 1"):
        gk.balance_rows(balance_steps=0)
    with pytest.raises(ValueError, match=r"balance_rows: the leaf 'b' of shape \(3,\) is no matrix"):
        gk.balance_rows(coefficients="muon").init({"b": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"aurora: 'b' is no matrix .* give adam_learning_rate"):
        gk.aurora(0.1, coefficients="muon").init({"b": jnp.ones(3)})
