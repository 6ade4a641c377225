"""Muown (Lion et al., 2026): directions of neurons by Muon, magnitudes by Adam."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.leaves import by_path, layout
from tests.by_numpy import by_numpy
from tests.papers.replay import assert_equal, normal, updates


def reference(w: np.ndarray, gradients: list[np.ndarray], lr: float, wd: float = 0.0, scale: float = 0.2) -> list[Any]:
    """v is kept here, and exact; magnitudes and v of every step."""
    gamma = np.linalg.norm(w, axis=0)
    v, m = w.copy(), np.zeros_like(w)
    m1 = m2 = np.zeros(w.shape[1])
    out = []
    for t, g in enumerate(gradients, 1):
        n = np.linalg.norm(v, axis=0)
        e = v / n
        dg = np.sum(g * e, axis=0)
        dv = gamma / n * (g - e * dg)
        m = 0.95 * m + dv
        U, _, Vt = np.linalg.svd(dv + 0.95 * m, full_matrices=False)
        v = v - lr * scale * math.sqrt(max(w.shape)) * U @ Vt
        m1, m2 = 0.9 * m1 + 0.1 * dg, 0.95 * m2 + 0.05 * dg**2
        gamma = gamma - lr * (m1 / (1 - 0.9**t)) / (np.sqrt(m2 / (1 - 0.95**t)) + 1e-8)
        new = gamma * v / np.linalg.norm(v, axis=0) - lr * wd * w
        if wd:
            gamma, v = np.linalg.norm(new, axis=0), new / np.linalg.norm(new, axis=0) * np.linalg.norm(v, axis=0)
        w = new
        out.append(w)
    return out


@pytest.mark.parametrize("wd", [0.0, 0.5])
def test_the_algorithm_with_a_v_that_is_kept(wd: float, x64: None) -> None:
    """Weights decay once, and magnitudes are the norms of what is left: a second decay of them would be seen."""
    w, gradients = np.asarray(normal(0, 5, 4)), [np.asarray(normal(1 + i, 5, 4)) for i in range(4)]
    tx = gk.muown(0.05, method="svd", weight_decay=wd)
    state, x = tx.init(jnp.asarray(w)), jnp.asarray(w)
    for g, want in zip(gradients, reference(w, gradients, 0.05, wd), strict=True):
        u, state = tx.update(jnp.asarray(g), state, x)
        x = optax.apply_updates(x, u)
        assert_equal(x, want, rtol=1e-10)


def test_norms_are_the_magnitudes_and_steps_stand_at_right_angles(x64: None) -> None:
    """|W_j| = |gamma_j|; with momentum 0 the direction of Muon is nearly orthogonal to v, so |v| never shrinks."""
    x: Any = {"kernel": normal(0, 6, 4)}
    tx = gk.muown(0.05, momentum=0.0, method="svd")
    state, grown = tx.init(x), np.linalg.norm(x["kernel"], axis=0)
    for i in range(5):
        u, state = tx.update({"kernel": normal(1 + i, 6, 4)}, state, x)
        x = optax.apply_updates(x, u)
        magnitude = gk.find(state, "magnitude")["kernel"]
        assert_equal(np.linalg.norm(np.asarray(x["kernel"]), axis=0)[None], np.abs(magnitude))
        assert (gk.find(state, "norm")["kernel"][0] > grown * 0.99).all()


def test_scaling_v_changes_the_speed_alone(x64: None) -> None:
    """With a magnitude that stays, a kernel ten times as large turns by a tenth of the angle and keeps its norms."""
    angles = []
    for size in (1.0, 10.0):
        w = size * np.asarray(normal(0, 6, 4))
        g = np.asarray(normal(1, 6, 4))
        e = w / np.linalg.norm(w, axis=0)
        g = g - e * np.sum(g * e, axis=0)  # of which the magnitudes feel nothing
        after = w + np.asarray(updates(gk.muown(0.01, method="svd"), jnp.asarray(w), [jnp.asarray(g)])[0])
        np.testing.assert_allclose(np.linalg.norm(after, axis=0), np.linalg.norm(w, axis=0), rtol=1e-6)
        cosine = np.sum(after * w, axis=0) / np.linalg.norm(after, axis=0) / np.linalg.norm(w, axis=0)
        angles.append(np.arccos(cosine))
    np.testing.assert_allclose(angles[0], 10 * angles[1], rtol=0.01)  # the arc tangent, to its third order


def test_a_neuron_of_zeros_can_be_trained_and_a_matrix_of_zeros_is_refused() -> None:
    """The official code divides 0 by 0."""
    x = {"kernel": np.asarray(normal(0, 6, 4)).astype(np.float32)}
    x["kernel"][:, 1] = 0
    tx = gk.muown(0.1)
    state, update = tx.init(x), by_numpy(tx.update)
    for i in range(4):
        u, state = update({"kernel": np.asarray(normal(1 + i, 6, 4)).astype(np.float32)}, state, x)
        x = optax.apply_updates(x, u)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves((x, state)))
    assert np.linalg.norm(x["kernel"][:, 1]) > 0.05
    zero = {"a": {"kernel": jnp.zeros((3, 4))}, "b": {"kernel": jnp.ones((3, 4))}}
    with pytest.raises(ValueError, match=r"muown: a matrix of zeros .* 'a/kernel'\. .* gk\.leaves\.groups"):
        tx.init(zero)
    u, _ = by_numpy(lambda x: tx.update(x, tx.init(x), x))(zero)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(u))


def test_layers_and_fused_weights_are_matrices_of_their_own(x64: None) -> None:
    x = {"ScanBlock_0": {"kernel": normal(0, 2, 5, 4)}, "qkv": normal(1, 4, 12)}
    g = {"ScanBlock_0": {"kernel": normal(2, 2, 5, 4)}, "qkv": normal(3, 4, 12)}
    fused = layout((by_path("qkv"), {"splits": (4, 4, 4)}))
    got = updates(gk.muown(0.1, layout=fused), x, [g, g])[1]
    for i in range(2):
        one = updates(gk.muown(0.1), x["ScanBlock_0"]["kernel"][i], [g["ScanBlock_0"]["kernel"][i]] * 2)[1]
        assert_equal(got["ScanBlock_0"]["kernel"][i], one)
    pairs = zip(jnp.split(x["qkv"], 3, 1), jnp.split(g["qkv"], 3, 1), strict=True)
    parts = [updates(gk.muown(0.1), a, [b, b])[1] for a, b in pairs]
    assert_equal(got["qkv"], jnp.concatenate(parts, axis=1))


def test_three_times_as_many_outputs_as_inputs_are_one_matrix(x64: None) -> None:
    """The official code splits such a leaf into three by its shape alone; here `splits` of the layout say so."""
    w, g = np.asarray(normal(0, 3, 9)), [np.asarray(normal(1, 3, 9)), np.asarray(normal(2, 3, 9))]
    want = reference(w, g, 0.05)
    got = updates(gk.muown(0.05, method="svd"), jnp.asarray(w), [jnp.asarray(x) for x in g])
    assert_equal(w + np.asarray(got[0]) + np.asarray(got[1]), want[1], rtol=1e-10)
    parts = [reference(a, [x, y], 0.05)[1] for a, x, y in zip(*(np.split(x, 3, axis=1) for x in (w, *g)), strict=True)]
    assert np.abs(np.concatenate(parts, axis=1) - want[1]).max() > 1e-3


def test_vectors_take_adamw(x64: None) -> None:
    x, g = {"kernel": normal(0, 3, 4), "bias": normal(1, 4)}, {"kernel": normal(2, 3, 4), "bias": normal(3, 4)}
    got = updates(gk.muown(0.01), x, [g])[0]["bias"]
    assert_equal(got, updates(gk.adamw(0.01, b2=0.95, weight_decay=0.0), x["bias"], [g["bias"]])[0])
