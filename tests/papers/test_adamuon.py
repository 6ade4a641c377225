"""AdaMuon (Si et al., 2025)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal
from tests.papers.test_normuon import directions


def polar(u: np.ndarray) -> np.ndarray:
    """Signs may be of less than full rank: what has no singular value is left out."""
    U, s, Vt = np.linalg.svd(u, full_matrices=False)
    return U * (s > 1e-10) @ Vt


def test_the_algorithm(x64: None) -> None:
    g, m, v, want = [normal(i, 4, 6) for i in range(4)], 0.0, 0.0, []
    for x in map(np.asarray, g):
        m = 0.9 * m + 0.1 * x
        o = polar(np.sign(0.1 * x + 0.9 * m))
        v = 0.8 * v + 0.2 * o**2
        q = o / (np.sqrt(v) + 1e-3)
        want.append(0.2 * np.sqrt(24) * q / (np.linalg.norm(q) + 1e-3))
    tx = gk.scale_by_adamuon(momentum=0.9, b2=0.8, nu_eps=1e-3, method="svd")
    assert_equal(directions(tx, g), want, 1e-10, 1e-12)
    transposed = directions(tx, [x.T for x in g])
    assert_equal([x.T for x in transposed], want, 1e-10, 1e-12)


def test_its_size_is_that_of_adam_whatever_the_gradients(x64: None) -> None:
    """Root mean square 0.2 at every step; signs make it the same for every scale. Codes of the paper's first version
    have neither."""
    g: Any = [normal(i, 5, 8) for i in range(3)]
    got = directions(gk.scale_by_adamuon(), g)
    np.testing.assert_allclose([np.sqrt(np.mean(np.square(x))) for x in got], 0.2, rtol=1e-7)
    assert_equal(directions(gk.scale_by_adamuon(), [1e-6 * x for x in g]), got)
    # Without memory every entry has the size 0.2, up to nu_eps.
    without = directions(gk.scale_by_adamuon(b2=0.0, method="svd"), g)
    np.testing.assert_allclose(np.abs(without), 0.2, rtol=1e-6)


def test_zeros_and_bad_input() -> None:
    assert not np.asarray(directions(gk.scale_by_adamuon(nu_eps=0.0, eps=0.0), [jnp.zeros((3, 4))])[0]).any()
    state = jax.eval_shape(gk.scale_by_adamuon().init, jnp.ones((3, 4)))
    assert sum(x.size for x in jax.tree.leaves(state)) == 24
    for options, message in (({"b2": 1.0}, "b2 must be"), ({"nu_eps": -1.0}, "nu_eps must be")):
        with pytest.raises(ValueError, match=message):
            gk.adamuon(**options)
    # Its updates are of AdamW's size: one learning rate serves all leaves.
    jax.eval_shape(gk.adamuon().init, {"bias": jnp.ones(3), "kernel": jnp.ones((3, 4))})
