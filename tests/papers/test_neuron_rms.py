"""A second moment per neuron behind any map of matrices (Li et al., 2025)."""

import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates
from tests.papers.test_normuon import directions


def test_the_link_behind_muon_is_the_method(x64: None) -> None:
    g = [{"a": normal(i, 4, 6), "b": normal(10 + i, 6, 4)} for i in range(3)]
    for axis in ("output", "long"):
        chain = optax.chain(gk.scale_by_muon(scale=None), gk.scale_by_neuron_rms(axis=axis))
        assert_equal(directions(chain, g), directions(gk.scale_by_normuon(axis=axis, scale=None), g), 1e-10, 1e-12)


def test_behind_the_gradient(x64: None) -> None:
    """Neurons of rows of very unequal size are of one length; without `preserve` that is sqrt(inputs)."""
    g = normal(0, 5, 3) * np.array([[1e-3, 1.0, 1e3]])
    for preserve in ("frobenius", None):
        got = np.asarray(updates(gk.scale_by_neuron_rms(b2=0.0, nu_eps=0.0, preserve=preserve), g, [g])[0])
        length = np.sqrt(5) if preserve is None else np.linalg.norm(g) / np.sqrt(3)
        np.testing.assert_allclose(np.linalg.norm(got, axis=0), length, rtol=1e-12)
        np.testing.assert_allclose(got / length, np.asarray(g) / np.linalg.norm(g, axis=0), rtol=1e-12)


def test_bad_input() -> None:
    for options, message in (({"b2": 1.0}, "b2 must be"), ({"axis": "out"}, "axis must be one of")):
        with pytest.raises(ValueError, match=message):
            gk.scale_by_neuron_rms(**options)
    with pytest.raises(ValueError, match="preserve must be"):
        gk.scale_by_neuron_rms(preserve="rms")
