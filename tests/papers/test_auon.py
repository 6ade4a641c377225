"""AuON (Maity, 2025)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates

A, B, C = 3.4445, -4.7750, 2.0315


def rms_of_cosh(u: np.ndarray, gamma: float) -> float:
    return math.sqrt(np.mean(np.cosh(gamma * u / (np.linalg.norm(u) + 1e-7)) ** 2))


def newton_schulz(u: np.ndarray) -> np.ndarray:
    x = u / (np.linalg.norm(u) + 1e-7)
    gram = x @ x.T
    return A * x + (B * gram + C * gram @ gram) @ x


def test_the_algorithm(x64: None) -> None:
    gradients, m, want = [normal(i, 4, 6) for i in range(4)], np.zeros((4, 6)), []
    for g in map(np.asarray, gradients):
        m = 0.9 * m + 0.1 * g
        u = 0.1 * g + 0.9 * m
        want.append(u / (rms_of_cosh(u, 1.5) + 1e-8))
    assert_equal(updates(gk.scale_by_auon(momentum=0.9), gradients[0], gradients), want)


def test_hybrid_orthogonalises_matrices_alone(x64: None) -> None:
    g = {"bias": normal(0, 4), "kernel": normal(1, 4, 6), "stack": normal(2, 2, 3, 4)}
    got = updates(gk.scale_by_hybrid_auon(momentum=0.0), g, [g])[0]
    for name, x in g.items():
        u = np.asarray(x)
        if name == "kernel":
            u = newton_schulz(u)
        if name == "stack":  # two matrices, one tensor: their norm and mean are joint
            u = np.stack([newton_schulz(v) for v in u])
        assert_equal(got[name], u / (rms_of_cosh(u, 1.5) + 1e-8), rtol=1e-10)
    scan = {"ScanBlock_0": g["stack"]}
    layers = updates(gk.scale_by_hybrid_auon(momentum=0.0), scan, [scan])[0]["ScanBlock_0"]
    for i in (0, 1):
        u = newton_schulz(np.asarray(g["stack"][i]))
        assert_equal(layers[i], u / (rms_of_cosh(u, 1.5) + 1e-8), rtol=1e-10)
    declared = gk.leaves.layout((gk.leaves.by_path("stack"), {"stack": 1}))
    own = updates(gk.scale_by_hybrid_auon(momentum=0.0, layout=declared), g, [g])[0]["stack"]
    assert_equal(own, layers)


def test_hybrid_keeps_the_singular_vectors(x64: None) -> None:
    u = np.asarray(normal(0, 5, 8))
    U, _, Vt = np.linalg.svd(u, full_matrices=False)
    core = U.T @ np.asarray(updates(gk.scale_by_hybrid_auon(momentum=0.0), jnp.asarray(u), [jnp.asarray(u)])[0]) @ Vt.T
    np.testing.assert_allclose(core, np.diag(np.diag(core)), atol=1e-12)
    assert (np.diag(core) > 0).all()


def test_without_steepness_nothing_is_divided(x64: None) -> None:
    g = normal(0, 4, 6)
    assert_equal(updates(gk.scale_by_cosh_rms(gamma=0.0, eps=0.0), g, [g])[0], g)


@pytest.mark.parametrize("gamma", [0.5, 1.5, 44.0, 80.0])
@pytest.mark.parametrize("x64_on", [False, True])
def test_the_factor_is_between_one_and_cosh_and_parallel(gamma: float, x64_on: bool) -> None:
    """Also where the square of the cosine is no float32: a vector of one entry has the largest, cosh(gamma)."""
    with jax.enable_x64(x64_on):
        for u in (normal(0, 4, 6), jnp.zeros((30,)).at[3].set(-2.0), jnp.array([0.7])):
            d = np.asarray(updates(gk.scale_by_cosh_rms(gamma=gamma, eps_norm=0.0, eps=0.0), u, [u])[0], np.float64)
            x = np.asarray(u, np.float64)
            R = np.linalg.norm(x) / np.linalg.norm(d)
            rounding = 1e-12 if x64_on else 1e-3  # cosh multiplies the rounding of its argument by gamma <= 80
            np.testing.assert_allclose(d * R, x, atol=1e-6 if not x64_on else 1e-13)
            assert 1 - rounding <= R <= math.cosh(gamma) * (1 + rounding)
            want = math.sqrt(np.mean(np.cosh(gamma * x / np.linalg.norm(x)) ** 2))
            np.testing.assert_allclose(R, want, rtol=rounding)


def test_as_released_it_is_momentum_to_five_digits(x64: None) -> None:
    gradients = [normal(i, 64, 64) for i in range(2)]
    plain = updates(gk.scale_by_auon(gamma=0.0), gradients[0], gradients)
    auon = updates(gk.scale_by_auon(), gradients[0], gradients)
    # R - 1 = gamma^2 / (2 size) and a term of second order, gamma^4 / size^2.
    for a, b in zip(plain, auon, strict=True):
        np.testing.assert_allclose(np.asarray(a / b) - 1, 1.5**2 / (2 * 64**2), rtol=2e-3)


def test_the_form_of_norm_one(x64: None) -> None:
    g: Any = {"wide": normal(0, 4, 16), "tall": normal(1, 16, 4), "bias": normal(2, 3)}
    tx = gk.scale_by_cosh_rms(gamma=1.0, normalize=True, scale_by_shape=True)
    got = updates(tx, g, [g])[0]
    for name, s in (("wide", 2.0), ("tall", 1.0), ("bias", 1.0)):
        u = np.asarray(g[name])
        assert_equal(got[name], s * u / (np.linalg.norm(u) + 1e-7) / (rms_of_cosh(u, 1.0) + 1e-8))
    assert_equal(updates(tx, g, [jax.tree.map(lambda x: 1e3 * x, g)])[0], got, rtol=1e-6)


def test_zero_and_empty_updates_stay(x64: None) -> None:
    for tx in (gk.scale_by_cosh_rms(eps_norm=0.0, eps=0.0, normalize=True), gk.auon(eps=0.0, eps_norm=0.0)):
        g = {"kernel": jnp.zeros((3, 4)), "none": jnp.zeros((0, 4))}
        assert_equal(updates(tx, g, [g])[0], g)


def test_what_overflows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 80\]"):
        gk.auon(gamma=81.0)
    with pytest.raises(ValueError, match="shard must be a MatrixSharding"):
        gk.hybrid_auon(shard="data")
