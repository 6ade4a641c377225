"""NorDion2, also called Dion3: Dion2 with one second moment per output."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal
from tests.papers.test_dion2 import polynomial
from tests.papers.test_select_slices import directions


def test_the_algorithm(x64: None) -> None:
    """Second moments move with the outputs that are selected, and with these alone."""
    abc = (3.0, -3.2, 1.2)
    for n, m in ((4, 6), (6, 4)):
        g, M, v, want = [normal(i, n, m) for i in range(5)], np.zeros((n, m)), np.zeros(m), []
        for x in g:
            M = M + np.asarray(x)
            c = np.argsort(-np.abs(M).sum(axis=0), kind="stable")[: math.ceil(m / 2)]
            o = polynomial(M[:, c].T, [abc] * 3).T
            v[c] = 0.8 * v[c] + 0.2 * np.mean(o**2, axis=0)
            p = o / (np.sqrt(v[c]) + 1e-3)
            d = np.zeros((n, m))
            d[:, c] = math.sqrt(m / n) * p * np.linalg.norm(o) / np.linalg.norm(p)
            M[:, c] *= 0.7
            want.append(d)
        tx = gk.scale_by_nordion2(fraction=0.5, ef_decay=0.7, coefficients=abc, ns_steps=3, b2=0.8, nu_eps=1e-3)
        assert_equal(directions(tx, g), want, 1e-9, 1e-11)


def test_selected_outputs_are_equally_long_without_memory(x64: None) -> None:
    d = np.asarray(directions(gk.scale_by_nordion2(fraction=0.5, b2=0.0), [normal(0, 5, 8)])[0])
    lengths = np.linalg.norm(d, axis=0)
    assert (lengths > 0).sum() == 4
    np.testing.assert_allclose(lengths[lengths > 0], lengths.max(), rtol=1e-6)


def test_with_all_outputs_it_is_normuon(x64: None) -> None:
    """Up to the look-ahead and eps: the sum has the direction of the mean."""
    g = [normal(i, 4, 7) for i in range(4)]
    got = directions(gk.scale_by_nordion2(fraction=1.0, ef_decay=0.9, eps=0.0, nu_eps=0.0), g)
    options = {"coefficients": "polar_express", "scale": "ratio", "eps": 0.0, "nu_eps": 0.0}
    assert_equal(got, directions(gk.scale_by_normuon(momentum=0.9, nesterov=False, **options), g), 1e-9, 1e-10)


def test_names_zeros_and_bad_input() -> None:
    assert not np.asarray(directions(gk.scale_by_nordion2(eps=0.0, nu_eps=0.0), [jnp.zeros((3, 4))])[0]).any()
    state = gk.scale_by_nordion2().init(jnp.ones((4, 6)))
    assert sum(x.size for x in jax.tree.leaves(state)) == 24 + 6
    with pytest.raises(ValueError, match="b2 must be"):
        gk.nordion2(b2=1.0)
    for name in ("dion3", "nordion2"):
        with pytest.raises(ValueError, match=rf"{name}: 'bias' is no matrix and takes AdamW"):
            getattr(gk, name)().init({"bias": jnp.ones(3)})
