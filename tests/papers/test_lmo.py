"""Linear minimisation oracles (Pethick et al., 2025): the point of the unit ball that a gradient is most along."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.leaves import by_path, layout
from tests.by_numpy import by_numpy
from tests.papers.replay import assert_equal, normal


def oracle(g: Any, norm: str, **options: Any) -> Any:
    tx = gk.lmo(norm, **{"method": "svd", "norm_eps": 0.0, **options})
    return by_numpy(lambda g: tx.update(g, tx.init(g))[0])(g)


# norm, options -> (the norm whose ball it is, its dual), of a matrix of n inputs and p outputs.
BALLS: dict[str, tuple[str, dict[str, Any], Any, Any]] = {
    "spectral": (
        "spectral",
        {},
        lambda x, n, p: np.linalg.norm(x, 2) / math.sqrt(p / n),
        lambda g, n, p: math.sqrt(p / n) * np.linalg.norm(g, "nuc"),
    ),
    "spectral in absolute units": (
        "spectral",
        {"normalized": False},
        lambda x, n, p: np.linalg.norm(x, 2) / math.sqrt(p),
        lambda g, n, p: math.sqrt(p) * np.linalg.norm(g, "nuc"),
    ),
    "sign": ("sign", {}, lambda x, n, p: n * np.abs(x).max(), lambda g, n, p: np.abs(g).sum() / n),
    "sign in absolute units": (
        "sign",
        {"normalized": False},
        lambda x, n, p: np.abs(x).max(),
        lambda g, n, p: np.abs(g).sum(),
    ),
    "row": (
        "row",
        {},
        lambda x, n, p: math.sqrt(n) * np.linalg.norm(x, axis=0).max(),
        lambda g, n, p: np.linalg.norm(g, axis=0).sum() / math.sqrt(n),
    ),
    "row in absolute units": (
        "row",
        {"normalized": False},
        lambda x, n, p: np.linalg.norm(x, axis=0).max(),
        lambda g, n, p: np.linalg.norm(g, axis=0).sum(),
    ),
    "col": (
        "col",
        {},
        lambda x, n, p: np.linalg.norm(x, axis=1).max() / math.sqrt(p),
        lambda g, n, p: math.sqrt(p) * np.linalg.norm(g, axis=1).sum(),
    ),
    "col in units of the layer": (
        "col",
        {"normalized": True},
        lambda x, n, p: n * np.linalg.norm(x, axis=1).max() / math.sqrt(p),
        lambda g, n, p: math.sqrt(p) * np.linalg.norm(g, axis=1).sum() / n,
    ),
    "bias_rms": (
        "bias_rms",
        {},
        lambda x, n, p: math.sqrt(np.mean(x**2)),
        lambda g, n, p: math.sqrt(n * p) * np.linalg.norm(g),
    ),
}


@pytest.mark.parametrize("ball", BALLS)
def test_the_inner_product_is_the_dual_norm(ball: str, x64: None) -> None:
    """The point is on the unit sphere, and no point of the ball does better: the inner product is the dual norm."""
    norm, options, size, dual = BALLS[ball]
    for n, p in ((4, 7), (7, 4)):
        g = np.asarray(normal(n, n, p))
        x = np.asarray(oracle(g, norm, **options))
        np.testing.assert_allclose(size(x, n, p), 1.0, rtol=1e-12)
        np.testing.assert_allclose(np.sum(g * x), dual(g, n, p), rtol=1e-12)


def test_the_factor_is_not_one_at_least_unless_asked(x64: None) -> None:
    """What levanter calls Scion has sqrt(max(1, p / n)), which is another norm of a layer with fewer outputs."""
    g = normal(0, 9, 4)
    assert_equal(np.linalg.norm(oracle(g, "spectral"), 2), 2 / 3)
    assert_equal(np.linalg.norm(oracle(g, "spectral", max=True), 2), 1.0)
    assert_equal(np.linalg.norm(oracle(g.T, "spectral", max=True), 2), 1.5)


def test_a_convolution_is_one_matrix_per_position_of_its_window(x64: None) -> None:
    g = normal(0, 3, 3, 2, 8)
    flat = oracle(g.reshape(18, 8), "spectral") / math.sqrt(8 / 18)
    got = oracle({"conv": {"kernel": g}}, "spectral")["conv"]["kernel"]
    assert_equal(got.reshape(18, 8), math.sqrt(8 / 2) / 9 * flat)


@pytest.mark.parametrize("norm", ["spectral", "sign", "row", "col"])
def test_every_statistic_is_of_one_matrix(norm: str, x64: None) -> None:
    """Of one layer of a stack, and of one of several fused weights, in any order of axes."""
    layers = normal(0, 3, 4, 6)
    got = oracle({"ScanBlock_0": {"kernel": layers}}, norm)["ScanBlock_0"]["kernel"]
    assert_equal(got, jnp.stack([oracle(x, norm) for x in layers]))
    x = normal(1, 5, 8)
    fused = layout((by_path("qkv"), {"splits": (4, 2, 2)}))
    parts = [oracle(part, norm) for part in jnp.split(x, [4, 6], axis=1)]
    assert_equal(oracle({"qkv": x}, norm, layout=fused)["qkv"], jnp.concatenate(parts, axis=1))
    turned = layout((by_path("w"), {"inputs": (1,), "outputs": (0,), "splits": (4, 2, 2)}))
    assert_equal(oracle({"w": x.T}, norm, layout=turned)["w"], jnp.concatenate(parts, axis=1).T)


@pytest.mark.parametrize("norm", ["spectral", "sign", "row", "col", "bias_rms"])
def test_nothing_in_nothing_out(norm: str) -> None:
    """Also of a row or column of zeros, and without any eps."""
    zero = np.zeros((3, 4), np.float32)
    for options in ({}, {"norm_eps": 0.0, "eps": 0.0}, {"method": "newton_schulz"}):
        assert not np.any(oracle(zero, norm, **options))
    half = np.asarray(normal(0, 3, 4)).astype(np.float32)
    half[1] = half[:, 2] = 0
    got = np.asarray(oracle(half, norm))
    assert np.isfinite(got).all() and not got[1].any() and not got[:, 2].any()


def test_eps_is_added_behind_the_factor(x64: None) -> None:
    """Where the official code has it, so that a tiny gradient gives a small step."""
    g = 1e-3 * normal(0, 4, 9)
    rows = np.linalg.norm(g, axis=0, keepdims=True)
    assert_equal(oracle(g, "row", norm_eps=0.01), g / (2 * rows + 0.01))
    roots = np.sqrt(np.mean(np.square(g), axis=1, keepdims=True))
    assert_equal(oracle(g, "col", norm_eps=0.01, normalized=True), g / (4 * roots + 0.01))
    assert_equal(oracle(g, "bias_rms", norm_eps=0.01), g / (math.sqrt(np.mean(np.square(g))) + 0.01))


@pytest.mark.parametrize("norm", ["spectral", "row", "col"])
def test_a_norm_of_matrices_refuses_a_vector(norm: str) -> None:
    with pytest.raises(
        ValueError, match=rf"lmo: the norm '{norm}' is one of matrices, and the leaf 'bias' .* 'bias_rms'"
    ):
        gk.lmo(norm).init({"bias": jnp.ones(3)})


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"norm must be one of 'spectral', .* did you mean 'spectral'"):
        gk.lmo("spectrl")
    with pytest.raises(ValueError, match="max must be False with the norm 'row'"):
        gk.lmo("row", max=True)
    with pytest.raises(ValueError, match=r"norm_eps must be in \[0, inf\)"):
        gk.lmo("row", norm_eps=-1.0)
