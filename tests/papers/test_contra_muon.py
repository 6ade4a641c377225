"""Contra-Muon and Soft-Muon (modded-nanogpt, track 3, records 11 and 20)."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.optimizers.matrix.contra_muon import SOFT_WEIGHTS
from tests.papers.replay import assert_equal, normal
from tests.papers.test_normuon import directions


def test_without_both_it_is_muon(x64: None) -> None:
    g = [{"a": normal(i, 4, 6), "b": normal(9 + i, 6, 4)} for i in range(3)]
    plain = gk.scale_by_muon(ns_steps=12, coefficients="quintic")
    # Twelve steps converge from either norm: 1 up to 1e-14 for singular values above 0.01.
    assert_equal(directions(gk.scale_by_contra_muon(contra=0.0), g), directions(plain, g), 1e-9, 1e-9)


@pytest.mark.parametrize(("contra", "soft"), [(-0.2, 0.0), (0.3, 0.0), (0.0, 1.0), (-0.1, 0.6)])
def test_singular_values_follow_the_printed_polynomial(contra: float, soft: float, x64: None) -> None:
    u, s, vt = np.linalg.svd(np.asarray(normal(0, 4, 7)), full_matrices=False)
    S4 = lambda x: np.sum(x**4) ** 0.25  # noqa: E731
    start = x = s / S4(s)
    f = 0.0
    for w in SOFT_WEIGHTS:
        f = f + w * x
        x = 2 * x - 1.5 * x**3 + 0.5 * x**5
    c = x + contra * start
    y = (1 - soft) * c * S4(x) / S4(c) + soft * f * S4(x) / S4(f)
    tx = gk.scale_by_contra_muon(contra=contra, soft=soft, scale=None)
    assert_equal(directions(tx, [normal(0, 4, 7)])[0], u * (y * S4(x) / S4(y)) @ vt, 1e-10, 1e-11)


def test_the_soft_map_is_about_the_tenth_root(x64: None) -> None:
    """Over two decades, up to a common factor."""
    s = np.geomspace(0.01, 1, 200)
    x, f = s, 0.0
    for w in SOFT_WEIGHTS:
        f, x = f + w * x, 2 * x - 1.5 * x**3 + 0.5 * x**5
    ratio = f / s**0.1
    assert ratio.max() / ratio.min() < 1.15


def test_schedules(x64: None) -> None:
    """Contra rises from -0.2 to 0: the third step is Muon's."""
    g = [normal(i, 4, 6) for i in range(3)]
    got = directions(
        gk.scale_by_contra_muon(contra=lambda t: jnp.array([-0.2, -0.1, 0.0])[t], soft=lambda t: jnp.zeros(())), g
    )
    for t, value in enumerate((-0.2, -0.1, 0.0)):
        assert_equal(got[t], directions(gk.scale_by_contra_muon(contra=value), g)[t], 1e-9, 1e-10)


def test_zeros_and_bad_input() -> None:
    assert not np.asarray(directions(gk.scale_by_contra_muon(soft=0.5), [jnp.zeros((3, 4))])[0]).any()
    for options, message in (
        ({"soft": 1.5}, "soft must be"),
        ({"contra": -1.0}, "contra must be"),
        ({"soft": 0.5, "ns_steps": 5}, "one number for each of the 5 iterations, got 12"),
        ({"ns_norm": "spectral"}, "ns_norm must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            gk.scale_by_contra_muon(**options)
    with pytest.raises(ValueError, match="soft_muon: 'bias' is no matrix"):
        gk.soft_muon().init({"bias": jnp.ones(3)})
