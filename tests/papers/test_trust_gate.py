"""The trust gate of SOAP-Muon (modded-nanogpt, track 3, records 45 and 46)."""

from typing import Any

import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal
from tests.papers.test_normuon import directions
from tests.papers.test_soap_muon import S4


def cosine(x: Any, y: Any) -> float:
    return float(np.sum(np.asarray(x) * np.asarray(y)) / np.linalg.norm(x) / np.linalg.norm(y))


def test_the_equations(x64: None) -> None:
    g, m = [np.asarray(normal(i, 4, 5)) for i in range(3)], 0.0
    got = directions(gk.trust_gate(optax.scale_by_sign(), momentum=0.8), [normal(i, 4, 5) for i in range(3)])
    for x, d in zip(g, got, strict=True):
        m = 0.8 * m + 0.2 * x
        u = 0.2 * x + 0.8 * m
        q = np.sign(u) * S4(u) / S4(np.sign(u))
        a = np.clip((cosine(q, u) - 0.2) / 0.8, 0, 1)
        h = np.clip(cosine(q, x) / max(cosine(u, x), 1e-8), 0, 1)
        y = u + a * h * (q - u)
        assert_equal(d, y * S4(u) / S4(y), 1e-10, 1e-12)


def test_what_points_elsewhere_is_not_trusted(x64: None) -> None:
    """An inner direction at an angle of cosine below 0.2, or none at all: the momentum. The momentum itself stays."""
    g = normal(0, 4, 5)
    for inner in (optax.scale(-1.0), optax.set_to_zero(), optax.identity()):
        assert_equal(directions(gk.trust_gate(inner, momentum=0.0), [g])[0], g, 1e-12)


def test_matrices_by_themselves_and_vectors(x64: None) -> None:
    tree = [{"a": normal(0, 4, 5), "bias": normal(1, 5)}]
    got = directions(gk.trust_gate(optax.scale_by_sign()), tree)[0]
    for name in tree[0]:
        assert_equal(got[name], directions(gk.trust_gate(optax.scale_by_sign()), [tree[0][name]])[0], 1e-12)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="momentum must be"):
        gk.trust_gate(optax.identity(), momentum=1.0)
