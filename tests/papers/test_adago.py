"""AdaGO (Zhang, Liu, Schaeffer, 2025): AdaGrad's step size of the norms of gradients, Muon's direction."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.leaves import by_path, layout
from tests.papers.replay import assert_equal, normal, updates


def sizes(gradients: list[Any], **options: Any) -> np.ndarray:
    """The step sizes: the largest singular value of every update."""
    return np.array([np.linalg.norm(u, 2) for u in updates(gk.adago(0.05, **options), gradients[0], gradients)])


def test_the_first_step_has_the_learning_rate(x64: None) -> None:
    """By the root of the accumulator: by the accumulator itself, as elsewhere, it would be learning_rate / norm."""
    g = normal(0, 4, 6)
    for scale in (0.3, 1.0, 100.0):
        assert_equal(sizes([scale * g], initial_accumulator_value=0.0, min_rate=0.0), [0.05])


def test_of_equal_norms_it_falls_with_the_root_of_the_number_of_steps(x64: None) -> None:
    gradients = [g / np.linalg.norm(g) for g in (normal(i, 4, 6) for i in range(6))]
    got = sizes(gradients, initial_accumulator_value=0.0, min_rate=0.0)
    assert_equal(got, 0.05 / np.sqrt(np.arange(1, 7)))
    assert_equal(sizes(gradients, initial_accumulator_value=0.0, min_rate=0.03), np.maximum(got, 0.03))


def test_large_norms_count_as_the_largest(x64: None) -> None:
    gradients = [100 * normal(0, 4, 6), 0.1 * normal(1, 4, 6)]
    h = np.array([2.0, np.linalg.norm(gradients[1])])
    want = 0.05 * h / np.sqrt(1e-6 + np.cumsum(h**2))
    assert_equal(sizes(gradients, max_norm=2.0), np.maximum(5e-4, want))


def test_the_direction_is_the_exact_factor_of_the_momentum(x64: None) -> None:
    gradients = [normal(i, 4, 6) for i in range(2)]
    m = 0.05 * (0.95 * np.asarray(gradients[0]) + np.asarray(gradients[1]))
    U, _, Vt = np.linalg.svd(m, full_matrices=False)
    u = np.asarray(updates(gk.adago(0.05), gradients[0], gradients)[1])
    assert_equal(u / np.linalg.norm(u), -U @ Vt / 2, rtol=1e-9)


def test_every_matrix_has_an_accumulator(x64: None) -> None:
    g = {"ScanBlock_0": {"kernel": normal(0, 2, 4, 6) * jnp.array([1.0, 9.0]).reshape(2, 1, 1)}, "qkv": normal(1, 4, 8)}
    fused = layout((by_path("qkv"), {"splits": (6, 2)}))
    got = updates(gk.adago(0.1, layout=fused), g, [g, g])[1]
    layers = [updates(gk.adago(0.1), x, [x, x])[1] for x in g["ScanBlock_0"]["kernel"]]
    assert_equal(got["ScanBlock_0"]["kernel"], jnp.stack(layers))
    parts = [updates(gk.adago(0.1), x, [x, x])[1] for x in jnp.split(g["qkv"], [6], axis=1)]
    assert_equal(got["qkv"], jnp.concatenate(parts, axis=1))


def test_zero_gradients_and_decay(x64: None) -> None:
    x, zero = normal(0, 3, 4), jnp.zeros((3, 4))
    tx = gk.adago(0.1, initial_accumulator_value=0.0, weight_decay=0.5)
    assert_equal(updates(tx, x, [zero, zero])[0], -0.05 * x)
    with pytest.raises(ValueError, match=r"adago: 'b' is no matrix .* give adam_learning_rate"):
        gk.adago(0.1).init({"b": jnp.ones(3)})
    assert math.isfinite(float(updates(tx, x, [zero, x])[1].sum()))
