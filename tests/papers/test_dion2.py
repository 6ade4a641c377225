"""Dion2 (Ahn et al., 2025)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates
from tests.papers.test_select_slices import directions


def polynomial(x: np.ndarray, triples: Any) -> np.ndarray:
    x = x / (np.linalg.norm(x) + 1e-8)
    for a, b, c in triples:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def test_the_algorithm(x64: None) -> None:
    """In NumPy, on a 4 x 6 matrix: two inputs of four, with the factor of the complete matrix."""
    abc = (3.0, -3.2, 1.2)
    g, M, want = [normal(i, 4, 6) for i in range(5)], np.zeros((4, 6)), []
    for x in g:
        M = M + np.asarray(x)
        c = np.sort(np.argsort(-np.abs(M).sum(axis=1), kind="stable")[:2])
        d = np.zeros((4, 6))
        d[c] = math.sqrt(6 / 4) * polynomial(M[c], [abc] * 3)
        M[c] *= 0.7
        want.append(d)
    tx = gk.scale_by_dion2(fraction=0.5, ef_decay=0.7, coefficients=abc, ns_steps=3)
    assert_equal(directions(tx, g), want, 1e-10, 1e-12)


def test_with_all_slices_it_is_muon(x64: None) -> None:
    """M before the decay is g + ef_decay M: Muon's sum, whose direction is that of the mean but for eps."""
    g = [{"a": normal(i, 4, 7), "b": normal(9 + i, 7, 4)} for i in range(4)]
    got = directions(gk.scale_by_dion2(fraction=1.0, ef_decay=0.9, eps=0.0), g)
    muon = gk.scale_by_muon(momentum=0.9, nesterov=False, coefficients="polar_express", scale="ratio", eps=0.0)
    assert_equal(got, directions(muon, g), 1e-9, 1e-10)


def test_entries_that_are_not_selected_move_by_decay_only(x64: None) -> None:
    x, g = normal(0, 4, 9), normal(1, 4, 9)
    u = updates(gk.dion2(0.1, weight_decay=0.5), x, [g])[0]
    best = int(np.argmax(np.abs(g).sum(axis=1)))
    others = [i for i in range(4) if i != best]
    assert_equal(u[np.array(others)], -0.05 * x[np.array(others)])
    assert float(jnp.abs(u[best] + 0.05 * x[best]).min()) > 0


def test_zeros_and_bad_input() -> None:
    assert not np.asarray(directions(gk.scale_by_dion2(eps=0.0), [jnp.zeros((3, 4))])[0]).any()
    state = gk.scale_by_dion2().init(jnp.ones((4, 6)))
    assert sum(x.size for x in jax.tree.leaves(state)) == 24
    for options, message in (({"fraction": 2.0}, "fraction must be"), ({"scale": "rms"}, "scale must be one of")):
        with pytest.raises(ValueError, match=message):
            gk.dion2(**options)
    with pytest.raises(ValueError, match=r"dion2: 'bias' is no matrix and takes AdamW, .* give adam_learning_rate"):
        gk.dion2().init({"bias": jnp.ones(3)})
