"""PolarGrad (Lau, Long, Su, 2025)."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.linalg import one_sided_polar
from tests.papers.replay import assert_equal, normal
from tests.papers.test_normuon import directions, polar


def test_steepest_descent_in_the_spectral_norm(x64: None) -> None:
    """Without momentum <g, d> is the square of the nuclear norm; homogeneous, where Muon is not; 0 is Muon."""
    g = normal(0, 4, 6)
    d = directions(gk.scale_by_polargrad(momentum=0.0), [g])[0]
    nuclear = np.linalg.svd(np.asarray(g), compute_uv=False).sum()
    np.testing.assert_allclose(np.sum(np.asarray(g) * np.asarray(d)), nuclear**2, rtol=1e-12)
    assert_equal(directions(gk.scale_by_polargrad(momentum=0.0), [1e3 * g])[0], 1e3 * d, 1e-12)
    many = [normal(i, 4, 6) for i in range(3)]
    muon = gk.scale_by_muon(scale=None, method="svd", nesterov=False)
    assert_equal(directions(gk.scale_by_polargrad(nuclear_power=0.0), many), directions(muon, many), 1e-10, 1e-11)


def test_momentum_of_polar_factors(x64: None) -> None:
    g, M = [normal(i, 5, 3) for i in range(4)], 0.0
    got = directions(gk.scale_by_polargrad(momentum=0.8, polar_first=True), g)
    for x, d in zip(map(np.asarray, g), got, strict=True):
        M = 0.8 * M + 0.2 * polar(x)
        assert_equal(d, np.sum(x * polar(x)) * M, 1e-10, 1e-12)


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_one_sided(side: str, x64: None) -> None:
    """On a side of full rank the polar factor; rank is found, means are taken out before and after."""
    x = normal(0, 3, 7) if side == "inputs" else normal(0, 7, 3)
    assert_equal(one_sided_polar(x, side=side), polar(np.asarray(x)), 1e-10, 1e-11)
    low = x @ jnp.ones((x.shape[1], x.shape[1]))
    u, s, vt = np.linalg.svd(np.asarray(low))
    assert_equal(one_sided_polar(low, side=side), s[0] * np.outer(u[:, 0], vt[0]) / s[0], 1e-8, 1e-9)
    table = x if side == "outputs" else x.T
    centered = one_sided_polar(x, side=side, center=True)
    centered = centered if side == "outputs" else centered.T
    np.testing.assert_allclose(np.asarray(centered).mean(axis=0), 0, atol=1e-14)
    assert_equal(centered, polar(np.asarray(table) - np.asarray(table).mean(axis=0)), 1e-9, 1e-10)
    assert not np.asarray(one_sided_polar(0 * x, side=side)).any()
    got = directions(gk.scale_by_polargrad(one_sided=side), [x])[0]
    assert_equal(got, directions(gk.scale_by_polargrad(), [x])[0], 1e-9, 1e-10)


def test_zeros_and_bad_input() -> None:
    assert not np.asarray(directions(gk.scale_by_polargrad(), [jnp.zeros((3, 4))])[0]).any()
    for options, message in (
        ({"nuclear_power": -1.0}, "nuclear_power must be"),
        ({"one_sided": "rows"}, "one_sided must"),
    ):
        with pytest.raises(ValueError, match=message):
            gk.polargrad(**options)
    with pytest.raises(ValueError, match="side must be one of"):
        one_sided_polar(jnp.ones((2, 2)), side="rows")
    with pytest.raises(ValueError, match="polargrad: 'bias' is no matrix and takes AdamW"):
        gk.polargrad().init({"bias": jnp.ones(3)})
