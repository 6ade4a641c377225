"""NorMuon (Li et al., 2025), and what other codes do differently."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.leaves import by_path, layout
from tests.papers.replay import assert_equal, normal, updates


def directions(tx: Any, gradients: list[Any]) -> list[Any]:
    return updates(tx, gradients[0], gradients)


def polar(u: np.ndarray) -> np.ndarray:
    U, _, Vt = np.linalg.svd(u, full_matrices=False)
    return U @ Vt


@pytest.mark.parametrize("axis", ["output", "long"])
def test_the_algorithm(axis: str, x64: None) -> None:
    """Tall and wide: the mean is over the inputs, or over the shorter axis."""
    for n, m in ((7, 4), (4, 7)):
        gradients = [normal(i, n, m) for i in range(4)]
        mean_over = 0 if axis == "output" or n <= m else 1
        mu, v, want = np.zeros((n, m)), 0.0, []
        for g in map(np.asarray, gradients):
            mu = 0.9 * mu + 0.1 * g
            o = polar(0.1 * g + 0.9 * mu)
            v = 0.8 * v + 0.2 * np.mean(o**2, axis=mean_over, keepdims=True)
            p = o / (np.sqrt(v) + 1e-3)
            want.append(math.sqrt(max(1, m / n)) * p * np.linalg.norm(o) / (np.linalg.norm(p) + 1e-3))
        tx = gk.scale_by_normuon(momentum=0.9, b2=0.8, nu_eps=1e-3, axis=axis, method="svd")
        assert_equal(directions(tx, gradients), want, 1e-10, 1e-12)


def test_neurons_are_equally_long_and_the_norm_stays(x64: None) -> None:
    g = [normal(i, 5, 8) for i in range(3)]
    plain = directions(gk.scale_by_muon(), g)
    for b2 in (0.0, 0.95):
        got = directions(gk.scale_by_normuon(b2=b2), g)
        for x, y in zip(got, plain, strict=True):
            np.testing.assert_allclose(np.linalg.norm(x), np.linalg.norm(y), rtol=1e-9)  # nu_eps = 1e-10
            lengths = np.linalg.norm(np.asarray(x), axis=0)
            assert (np.ptp(lengths) < 1e-6 * lengths.max()) == (b2 == 0 or x is got[0])


def test_the_papers_size_is_that_of_moonlight_for_an_orthonormal_matrix(x64: None) -> None:
    g = [normal(i, 4, 6) for i in range(3)]
    paper = directions(gk.scale_by_normuon(method="svd", rescale="rms", scale=None), g)
    same = directions(gk.scale_by_normuon(method="svd", scale="match_rms_adamw"), g)
    assert_equal(paper, same, 1e-8)
    np.testing.assert_allclose([np.sqrt(np.mean(np.square(x))) for x in paper], 0.2, rtol=1e-8)


def test_zeros(x64: None) -> None:
    """A zero gradient gives zero and leaves v decayed; a neuron whose gradient is zero stays zero, with eps 0 too."""
    tx = gk.scale_by_normuon(nu_eps=0.0, momentum=0.0, method="svd")
    g = normal(0, 4, 6)
    _, state = tx.update(g, tx.init(g))
    zero, after = tx.update(0 * g, state)
    assert not zero.any()
    assert_equal(after.nu["outputs"], 0.95 * state.nu["outputs"])
    silent = g.at[:, 2].set(0)
    for x in directions(gk.scale_by_normuon(nu_eps=0.0), [silent] * 3):
        assert np.isfinite(x).all() and not x[:, 2].any() and x[:, :2].any()
    assert not directions(gk.scale_by_normuon(nu_eps=0.0, rescale="rms", scale=None), [0 * g])[0].any()


def test_permuting_neurons_permutes_the_update(x64: None) -> None:
    g, order = [normal(i, 4, 6) for i in range(3)], np.array([3, 1, 5, 0, 2, 4])
    got = directions(gk.scale_by_normuon(), [x[:, order] for x in g])
    assert_equal(got, [x[:, order] for x in directions(gk.scale_by_normuon(), g)], 1e-9, 1e-11)


def test_fused_weights_are_matrices_of_their_own(x64: None) -> None:
    tree = [{"qkv": normal(i, 4, 16)} for i in range(3)]
    fused = layout((by_path("qkv"), {"splits": (8, 4, 4)}))
    got = directions(gk.scale_by_normuon(layout=fused), tree)
    parts = [{str(i): p for i, p in enumerate(jnp.split(x["qkv"], [8, 12], axis=1))} for x in tree]
    apart = directions(gk.scale_by_normuon(), parts)
    assert_equal([x["qkv"] for x in got], [jnp.concatenate(list(x.values()), axis=1) for x in apart], 1e-10, 1e-12)


def test_state_and_bad_input() -> None:
    state = gk.scale_by_normuon().init(jnp.ones((4, 6)))
    assert sum(x.size for x in jax.tree.leaves(state)) == 24 + 6
    state = gk.scale_by_normuon(axis="long").init(jnp.ones((6, 4)))
    assert {k: x.shape for k, x in state.nu.items()} == {"inputs": (1, 6)}
    for options, message in (
        ({"b2": 1.0}, r"b2 must be"),
        ({"axis": "input"}, "axis must be one of"),
        ({"rescale": "rms"}, "rescale='rms' sets the size"),
        ({"nu_eps": -1.0}, "nu_eps must be"),
    ):
        with pytest.raises(ValueError, match=message):
            gk.scale_by_normuon(**options)
    with pytest.raises(ValueError, match=r"'bias' of shape .* is no matrix"):
        gk.scale_by_normuon().init({"bias": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"normuon: 'bias' is no matrix and takes AdamW, .* give adam_learning_rate"):
        gk.normuon().init({"bias": jnp.ones(3)})
    gk.normuon(rescale="rms", scale=None).init({"bias": jnp.ones(3)})
