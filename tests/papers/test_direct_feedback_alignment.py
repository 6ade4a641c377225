"""Direct feedback alignment (Launay et al., 2019)."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradkit.gradients import direct_feedback_alignment, feedback_alignment, init_feedback
from tests.papers.replay import assert_equal, normal

WIDTHS, CLASSES = (6, 4), 3


def hidden(p: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ p["w"] + p["b"][None])


def last(p: Any, x: jax.Array) -> jax.Array:
    return x @ p["w"] + p["b"][None]


def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def network(*widths: int) -> tuple[list, list, jax.Array, jax.Array]:
    sizes = [5, *widths, CLASSES]
    pairs = enumerate(itertools.pairwise(sizes))
    params = [{"w": normal(i, a, b) / 2, "b": 0.1 * normal(9 + i, b)} for i, (a, b) in pairs]
    return [hidden] * len(widths) + [last], params, normal(20, 7, 5), jnp.arange(7) % CLASSES


def total(layers: list, params: list, x: jax.Array, labels: jax.Array) -> jax.Array:
    for layer, p in zip(layers, params, strict=True):
        x = layer(p, x)
    return loss(x, labels)


def test_with_the_transposed_last_matrix_it_is_backpropagation(x64: None) -> None:
    layers, params, x, labels = network(6)
    fn = direct_feedback_alignment(layers, loss, params[1]["w"].T)
    value, g = jax.jit(fn)(params, x, labels)
    want, exact = jax.value_and_grad(lambda p: total(layers, p, x, labels))(params)
    assert_equal((value, g), (want, exact))
    for cosine in feedback_alignment(layers, loss, params[1]["w"].T)(params, x, labels):
        assert_equal(cosine, jnp.ones(7))


def test_every_layer_gets_the_error_of_the_mean_loss_through_its_columns(x64: None) -> None:
    """In NumPy: the last layer has its own gradient; a hidden one the columns of its width, rescaled."""
    layers, params, x, labels = network(*WIDTHS)
    B = np.asarray(init_feedback(0, WIDTHS, CLASSES), np.float64)
    _, g = direct_feedback_alignment(layers, loss, B)(params, x, labels)
    a = [np.asarray(x)]
    for p in params[:-1]:
        a.append(np.tanh(a[-1] @ np.asarray(p["w"]) + np.asarray(p["b"])))
    z = a[-1] @ np.asarray(params[-1]["w"]) + np.asarray(params[-1]["b"])
    e = (np.exp(z) / np.exp(z).sum(1, keepdims=True) - np.eye(CLASSES)[np.asarray(labels)]) / 7
    deltas = [e @ B[:, :d] * np.sqrt(6 / d) * (1 - h**2) for d, h in zip(WIDTHS, a[1:], strict=True)] + [e]
    for own, delta, h in zip(g, deltas, a, strict=True):
        assert_equal((own["w"], own["b"]), (h.T @ delta, delta.sum(0)), rtol=1e-10)
    _, plain = direct_feedback_alignment(layers, loss, B, normalize=False)(params, x, labels)
    assert_equal(jax.tree.map(lambda p: p * np.sqrt(6 / 4), plain[1]), g[1], rtol=1e-10)


def test_feedback_aligns_while_a_network_learns() -> None:
    """The weights come to agree with the fixed matrix: the cosine rises, and the loss falls."""
    layers, params, x, labels = network(16)
    params = jax.tree.map(lambda p: 0.1 * p, params)
    B = init_feedback(1, (16,), CLASSES)
    fn, measure = direct_feedback_alignment(layers, loss, B), feedback_alignment(layers, loss, B)

    def step(params: list, _: None) -> tuple[list, jax.Array]:
        value, g = fn(params, x, labels)
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, g), value

    end, values = jax.jit(lambda p: jax.lax.scan(step, p, None, 200))(params)
    before, after = (float(np.mean(measure(p, x, labels)[0])) for p in (params, end))
    assert values[-1] < 0.2 * values[0]
    assert after > before + 0.2 and after > 0.3


def test_the_matrix_has_the_size_of_the_best_practice() -> None:
    B = np.asarray(init_feedback(0, (400, 50), 100))
    assert B.shape == (100, 400) and B.dtype == np.float32
    # 40000 entries: five standard errors of a standard deviation.
    np.testing.assert_allclose(B.std() * np.sqrt(100 * 400), 1, rtol=5 / np.sqrt(2 * B.size))
    np.testing.assert_allclose(init_feedback(0, (400,), 100, normalize=False) / 200, B, rtol=1e-6)


def test_bad_input() -> None:
    layers, params, x, labels = network(*WIDTHS)
    with pytest.raises(ValueError, match="layers must be functions"):
        direct_feedback_alignment([], loss, jnp.ones((3, 6)))
    with pytest.raises(ValueError, match=r"feedback must be a matrix.*write init_feedback"):
        direct_feedback_alignment(layers, loss, jnp.ones(3))
    with pytest.raises(ValueError, match="feedback must be as wide as the widest layer, got 4 columns for layer 0"):
        direct_feedback_alignment(layers, loss, jnp.ones((3, 4)))(params, x, labels)
    with pytest.raises(ValueError, match=r"the last layer must give .* with 2 classes"):
        direct_feedback_alignment(layers, loss, jnp.ones((2, 6)))(params, x, labels)
    with pytest.raises(ValueError, match="params must have one tree per layer"):
        direct_feedback_alignment(layers, loss, jnp.ones((3, 6)))(params[:1], x, labels)
    with pytest.raises(ValueError, match="widths must"):
        init_feedback(0, [], 3)
