"""KL-SOAP (Lin et al., 2025)."""

import numpy as np

import gradkit as gk
from tests.papers.replay import assert_equal, normal
from tests.papers.test_kl_shampoo import directions, reference


def test_the_algorithm(x64: None) -> None:
    """The first moment is carried into new bases, the second stays as it is."""
    g = [normal(i, 5, 5) for i in range(7)]
    tx = gk.scale_by_kl_soap(b1=0.8, b2=0.7, shampoo_beta=0.9, eps=1e-3, update_interval=2)
    assert_equal(directions(tx, g), reference([np.asarray(x) for x in g], 0.8, 0.9, 1e-3, 2, 0.7), 1e-8, 1e-9)


def test_normalised_directions(x64: None) -> None:
    g = [normal(i, 4, 6) for i in range(4)]
    sized = directions(gk.scale_by_kl_soap(normalize_grads=True), g)
    np.testing.assert_allclose([np.sqrt(np.mean(np.square(u))) for u in sized[1:]], 1.0, rtol=1e-9)


def test_vectors_are_adams(x64: None) -> None:
    g = [np.asarray(normal(i, 5)) for i in range(3)]
    got = directions(gk.scale_by_kl_soap(b1=0.5, b2=0.8), [normal(i, 5) for i in range(3)])
    m = v = np.zeros(5)
    for x, u in zip(g[1:], got[1:], strict=True):
        m, v = 0.5 * m + 0.5 * x, 0.8 * v + 0.2 * x**2
        assert_equal(u, m / (np.sqrt(v) + 1e-8), 1e-10)
