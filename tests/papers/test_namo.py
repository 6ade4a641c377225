"""NAMO and NAMO-D (Zhang, Liu, Schaeffer, 2026): Adam's step size of norms, Muon's direction."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.leaves import by_path, layout
from tests.papers.replay import assert_equal, normal, updates

EXACT: dict[str, Any] = {"method": "svd", "weight_decay": 0.0}


def test_of_equal_gradients_the_step_size_becomes_the_learning_rate(x64: None) -> None:
    """sqrt(1 - b2^t) / (1 - momentum^t) corrects both means; without look-ahead it is exact at every step."""
    g = normal(0, 4, 6)
    got = updates(gk.namo(0.01, nesterov=False, norm_eps=0.0, **EXACT), g, [g] * 4)
    for u in got:
        assert_equal(np.linalg.norm(u, 2), 0.01 * 0.2 * math.sqrt(6), rtol=1e-9)


def test_of_noise_it_is_smaller(x64: None) -> None:
    gradients = [normal(i, 4, 6) for i in range(60)]
    last = updates(gk.namo(0.01, **EXACT), gradients[0], gradients)[-1]
    # A mean of independent gradients with decay 0.95 has the norm of one times sqrt(0.05 / 1.95), about 0.16.
    assert 0.05 < np.linalg.norm(last, 2) / (0.01 * 0.2 * math.sqrt(6)) < 0.4


@pytest.mark.parametrize("method", [gk.namo, gk.namo_d])
def test_scale_invariance(method: Any, x64: None) -> None:
    gradients = [normal(i, 4, 6) for i in range(3)]
    want = updates(method(0.01, norm_eps=0.0, eps=0.0), gradients[0], gradients)
    got = updates(method(0.01, norm_eps=0.0, eps=0.0, weight_decay=0.1), gradients[0], [1e3 * g for g in gradients])
    assert_equal(got, want, rtol=1e-9)


def test_eps_stands_outside_the_root(x64: None) -> None:
    """As in the code; the docstring there, and levanter, have it inside."""
    g = normal(0, 4, 6)
    u = updates(gk.namo(0.01, momentum=0.0, b2=0.0, norm_eps=2.0, **EXACT), g, [g])[0]
    n = float(jnp.linalg.norm(g))
    assert_equal(np.linalg.norm(u, 2), 0.01 * 0.2 * math.sqrt(6) * n / (n + 2.0), rtol=1e-9)


def test_rates_that_decay_and_that_step_are_cut_apart(x64: None) -> None:
    """The decay at 1, and the step with its factor of the shape at 1: not the rate alone, before that factor."""
    x, g = normal(9, 4, 400), normal(0, 4, 400)
    u = updates(gk.namo(0.5, momentum=0.0, b2=0.0, norm_eps=0.0, method="svd", weight_decay=0.1), x, [g])[0]
    U, _, Vt = np.linalg.svd(np.asarray(g), full_matrices=False)
    assert_equal(u, -0.1 * 0.5 * x - U @ Vt, rtol=1e-9, atol=1e-9)  # 0.5 * 0.2 * 20 = 2, cut at 1
    u = updates(gk.namo(3.0, momentum=0.0, b2=0.0, norm_eps=0.0, method="svd", weight_decay=0.1), x, [g])[0]
    assert_equal(u, -0.1 * x - U @ Vt, rtol=1e-9, atol=1e-9)


def test_with_clamp_1_all_inputs_have_the_mean(x64: None) -> None:
    g = normal(0, 4, 6) * jnp.array([1.0, 5.0, 0.1, 1.0]).reshape(4, 1)
    gradients = [g, jnp.roll(g, 1, axis=0)]
    x = normal(9, 4, 6)
    last = updates(gk.namo_d(0.01, clamp=1.0, norm_eps=0.0, **EXACT), x, gradients)[1]
    singular = np.linalg.svd(np.asarray(last), compute_uv=False)
    np.testing.assert_allclose(singular, singular[0], rtol=1e-9)
    m, nu, u = np.zeros((4, 6)), np.zeros(4), np.zeros((4, 6))
    for h in map(np.asarray, gradients):
        m, nu = 0.95 * m + 0.05 * h, 0.99 * nu + 0.01 * np.sum(h**2, axis=1)
        u = 0.05 * h + 0.95 * m
    mean = np.mean(np.linalg.norm(u, axis=1) / np.sqrt(nu))
    want = 0.01 * math.sqrt(1 - 0.99**2) / (1 - 0.95**2) * mean * 0.2 * math.sqrt(6)
    np.testing.assert_allclose(singular[0], want, rtol=1e-9)


@pytest.mark.parametrize("axis", ["inputs", "outputs"])
def test_each_input_has_a_step_size_near_the_mean(axis: str, x64: None) -> None:
    """Of inputs, as in the code; or of outputs, which is the same of the transpose."""
    x, gradients = normal(9, 4, 6), [normal(i, 4, 6) * jnp.arange(1.0, 5.0).reshape(4, 1) ** i for i in range(3)]
    turn = (lambda a: a) if axis == "inputs" else (lambda a: a.T)
    got = updates(gk.namo_d(0.01, axis=axis), turn(x), [turn(g) for g in gradients])
    assert_equal([turn(u) for u in got], updates(gk.namo_d(0.01), x, gradients), rtol=1e-9)
    U, _, Vt = np.linalg.svd(0.05 * (1 + 0.95) * np.asarray(gradients[0]), full_matrices=False)
    first = np.asarray(turn(updates(gk.namo_d(0.01, axis=axis, **EXACT), turn(x), [turn(gradients[0])])[0]))
    ratios = np.linalg.norm(first, axis=1) / np.linalg.norm(U @ Vt, axis=1)
    assert (ratios >= 0.75 * ratios.mean() - 1e-12).all() and (ratios <= ratios.mean() / 0.75 + 1e-12).all()


@pytest.mark.parametrize("method", [gk.namo, gk.namo_d])
def test_layers_fused_weights_and_zeros(method: Any, x64: None) -> None:
    g = {"ScanBlock_0": {"kernel": normal(0, 2, 4, 6).at[0].set(0)}, "qkv": normal(1, 4, 8)}
    fused = layout((by_path("qkv"), {"splits": (6, 2)}))
    own = {"norm_eps": 0.0, "weight_decay": 0.0}
    got = updates(method(0.1, layout=fused, **own), g, [g, g])[1]
    layers = [updates(method(0.1, **own), x, [x, x])[1] for x in g["ScanBlock_0"]["kernel"]]
    assert_equal(got["ScanBlock_0"]["kernel"], jnp.stack(layers))
    assert not np.any(layers[0])
    parts = [updates(method(0.1, **own), x, [x, x])[1] for x in jnp.split(g["qkv"], [6], axis=1)]
    assert_equal(got["qkv"], jnp.concatenate(parts, axis=1))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"clamp must be in \(0, 1\]"):
        gk.namo_d(0.1, clamp=1.5)
    with pytest.raises(ValueError, match="axis must be one of 'inputs', 'outputs'"):
        gk.namo_d(0.1, axis="columns")
    with pytest.raises(ValueError, match=r"namo: 'b' is no matrix .* give adam_learning_rate"):
        gk.namo(0.1).init({"b": jnp.ones(3)})
