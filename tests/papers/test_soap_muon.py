"""SOAP-Muon (Vyas, 2026; modded-nanogpt, track 3)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal
from tests.papers.test_normuon import directions, polar


def S4(x: Any) -> float:
    return float(np.sum(np.linalg.svd(np.asarray(x), compute_uv=False) ** 4) ** 0.25)


def reference(gradients: list[np.ndarray], b2: float, every: int) -> list[np.ndarray]:
    """In NumPy, on square matrices; exact polar factors."""
    m = v = np.zeros_like(gradients[0])
    S, Q, out = [0.0, 0.0], None, []
    for c, g in enumerate(gradients):
        m = 0.9 * m + 0.1 * g
        q = u = 0.1 * g + 0.9 * m
        if Q is not None:
            p = Q[0].T @ u @ Q[1]
            v = b2 * v + (1 - b2) * p**2
            q = Q[0] @ (p / np.sqrt(v)) @ Q[1].T
        out.append(polar(q))
        S = [b2 * s + (1 - b2) * x for s, x in zip(S, (g @ g.T, g.T @ g), strict=True)]
        if Q is None:
            Q = [np.linalg.eigh(s)[1][:, ::-1] for s in S]
        elif c % every == 0:
            order = [np.argsort(-np.diag(q.T @ s @ q)) for s, q in zip(S, Q, strict=True)]
            v = v[order[0]][:, order[1]]
            Q = [np.linalg.qr(s @ q[:, o])[0] for s, q, o in zip(S, Q, order, strict=True)]
    return out


def test_the_algorithm(x64: None) -> None:
    g = [normal(i, 4, 4) for i in range(6)]
    got = directions(gk.scale_by_soap_muon(momentum=0.9, b2=0.8, update_interval=2, scale=None, ns_steps=20), g)
    assert_equal(got, reference([np.asarray(x) for x in g], 0.8, 2), 1e-7, 1e-8)


def test_the_first_step_and_no_basis_at_all(x64: None) -> None:
    """The first is Muon's, also of a wide matrix; with every axis too long it is the sign-like u / sqrt(v)."""
    g = normal(0, 3, 7)
    muon = gk.scale_by_muon(ns_steps=12, coefficients="quintic")
    assert_equal(directions(gk.scale_by_soap_muon(), [g])[0], directions(muon, [g])[0], 1e-9, 1e-9)
    # One gradient again and again, b2 = 0: u / sqrt(u^2) is the sign.
    got = directions(gk.scale_by_soap_muon(max_dim=1, b2=0.0, momentum=0.0, scale=None, ns_steps=20), [g, g])[1]
    assert_equal(got, polar(np.sign(np.asarray(g))), 1e-7, 1e-8)


def test_a_constant_second_moment_is_muon(x64: None) -> None:
    """eps above all roots floors every one of them alike."""
    g = [normal(i, 4, 4) for i in range(4)]
    muon = gk.scale_by_muon(ns_steps=12, coefficients="quintic")
    assert_equal(directions(gk.scale_by_soap_muon(eps=1e6), g), directions(muon, g), 1e-8, 1e-9)


def test_the_size_of_gradients_does_not_matter(x64: None) -> None:
    g = [normal(i, 4, 5) for i in range(4)]
    tx = gk.scale_by_soap_muon(eps=0.0, max_dim=4)
    assert_equal(directions(tx, [1e3 * x for x in g]), directions(tx, g), 1e-7, 1e-8)


def test_the_gate_in_the_method_is_the_wrapper(x64: None) -> None:
    """With every axis too long for a basis, behind an unrotated second moment that skips the first step."""
    g = [normal(i, 4, 5) for i in range(4)]
    trusting = directions(gk.scale_by_soap_muon(max_dim=1, trust=True), g)
    plain = directions(gk.scale_by_soap_muon(max_dim=1), g)
    assert_equal(trusting[0], plain[0])
    assert max(float(np.abs(x - y).max()) for x, y in zip(trusting, plain, strict=True)) > 1e-3


def test_zeros_state_and_bad_input() -> None:
    assert not np.asarray(directions(gk.scale_by_soap_muon(eps=0.0, trust=True), [jnp.zeros((3, 4))] * 2)).any()
    state = jax.eval_shape(gk.scale_by_soap_muon().init, jnp.ones((3, 4)))
    assert sum(x.size for x in jax.tree.leaves(state)) == 2 * 12 + 2 * (9 + 16) + 2
    for options, message in (({"b2": 1.0}, "b2 must be"), ({"update_interval": 0}, "update_interval must be")):
        with pytest.raises(ValueError, match=message):
            gk.soap_muon(**options)
    with pytest.raises(ValueError, match="soap_muon: 'bias' is no matrix"):
        gk.soap_muon().init({"bias": jnp.ones(3)})
