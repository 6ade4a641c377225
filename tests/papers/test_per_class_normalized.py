"""The sum of the normalized gradients of classes: how many examples a class has does not matter."""

from typing import Any, cast

import jax.numpy as jnp
import numpy as np

import gradkit as gk


def test_is_the_sum_of_unit_vectors_over_the_tree(x64: None) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 4)), rng.standard_normal((3, 2, 2))
    a[1], b[1] = 0, 0  # a class that is absent
    tx: Any = gk.aggregation.per_class_normalized()
    u, _ = tx.update({"a": jnp.asarray(a), "b": jnp.asarray(b)}, tx.init({"a": a[0], "b": b[0]}))
    norms = np.sqrt((a**2).sum(1) + (b**2).sum((1, 2)))
    w = np.where(norms > 0, 1 / np.where(norms > 0, norms, 1), 0)
    np.testing.assert_allclose(u["a"], w @ a, rtol=1e-13)
    np.testing.assert_allclose(u["b"], np.einsum("i,ijk->jk", w, b), rtol=1e-13)
    averaged: Any = gk.aggregation.per_class_normalized(mean=True)
    half, _ = averaged.update({"a": jnp.asarray(a)}, tx.init({"a": a[0]}))
    w = np.where(norms > 0, 1 / np.maximum(np.linalg.norm(a, axis=1), 1e-300), 0) / 3
    np.testing.assert_allclose(half["a"], w @ a, rtol=1e-13)


def test_more_examples_of_one_class_change_nothing(x64: None) -> None:
    x, y = np.random.default_rng(1).standard_normal((5, 3)), np.array([0, 1, 1, 0, 0])
    more = np.concatenate([np.arange(5), np.tile([0, 3, 4], 6)])

    def losses(w: jnp.ndarray, x: jnp.ndarray, y: jnp.ndarray) -> tuple[jnp.ndarray, jnp.ndarray]:
        return jnp.square(x @ w - y.astype(float)), y

    source, tx = gk.gradients.per_class_gradients(losses, 2), cast(Any, gk.aggregation.per_class_normalized())
    w = jnp.ones(3)
    first, second = (
        tx.update(source(w, jnp.asarray(x[rows]), jnp.asarray(y[rows]))[1], tx.init(w))[0]
        for rows in (np.arange(5), more)
    )
    np.testing.assert_allclose(first, second, rtol=1e-12)


def test_of_one_class_it_is_normalized_gradient_descent() -> None:
    tx: Any = gk.aggregation.per_class_normalized()
    np.testing.assert_allclose(tx.update(jnp.array([[3.0, 4.0]]), tx.init(jnp.zeros(2)))[0], [0.6, 0.8], rtol=1e-6)


def test_both_of_two_classes_descend(x64: None) -> None:
    """<g_i, u> = |g_i| (1 + cos) > 0 unless the gradients are opposite."""
    rng = np.random.default_rng(2)
    tx: Any = gk.aggregation.per_class_normalized()
    for _ in range(8):
        g = rng.standard_normal((2, 3)) * [[1e3], [1e-3]]
        u = np.asarray(tx.update(jnp.asarray(g), tx.init(jnp.zeros(3)))[0])
        assert (g @ u > 0).all()
