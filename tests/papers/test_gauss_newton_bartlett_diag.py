"""The Gauss-Newton-Bartlett estimate: its mean is the diagonal of the Gauss-Newton matrix of softmax regression."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import normal

estimate = gk.gradients.gauss_newton_bartlett_diag


def logits(w: jax.Array, batch: jax.Array) -> jax.Array:
    return batch @ w


def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def test_the_mean_is_the_diagonal_of_the_gauss_newton_matrix(key: jax.Array, x64: None) -> None:
    batch, w = normal(0, 5, 3), 0.5 * normal(1, 3, 4)
    draws = 2000
    found = jax.jit(jax.vmap(lambda k: estimate(logits, loss, w, batch, k)))(jax.random.split(key, draws))
    p = jax.nn.softmax(batch @ w)
    # d(logits_c)/d(w_ic) = x_i: the diagonal is the mean over examples of x_i^2 p_c (1 - p_c).
    want = jnp.einsum("bi,bc->ic", batch**2, p * (1 - p)) / len(batch)
    # Five deviations of a mean of so many draws, as the draws themselves say.
    assert np.all(np.abs(found.mean(0) - want) < 5 * found.std(0) / np.sqrt(draws))
    assert np.abs(found.mean(0) / want - 1).mean() < 0.05
    assert np.all(found >= 0)


def test_labels_are_drawn_from_the_model(key: jax.Array) -> None:
    """Where the model is sure, its labels are what it says, and the gradient vanishes; the data have no say."""
    w = jnp.array([[50.0, 0.0]])
    assert float(jnp.abs(estimate(logits, loss, w, jnp.ones((4, 1)), key)).max()) < 1e-12


def test_every_label_counts(key: jax.Array, x64: None) -> None:
    """B is the number of labels, of a language model that of tokens; or what the loss is a mean over."""

    def fixed(logits: jax.Array, labels: jax.Array) -> jax.Array:
        del labels
        return logits[..., 0].mean()

    w, tokens = jnp.ones((3, 2)), jnp.ones((4, 5, 3))
    expected = np.array([[1.0, 0.0]] * 3)  # the squared gradient of the mean
    np.testing.assert_allclose(estimate(logits, fixed, w, tokens, key), 20 * expected)
    np.testing.assert_allclose(estimate(logits, fixed, w, tokens, key, count=7), 7 * expected)


def test_replicas(key: jax.Array, x64: None) -> None:
    """Each draws labels of its own; gradients are averaged before the square, and B counts the labels of all."""
    batch, w = normal(0, 4, 2, 3), normal(1, 3, 4)

    def local(part: jax.Array, w: jax.Array) -> jax.Array:
        return estimate(logits, loss, w, part, key, axis_name="r")

    found = jax.jit(jax.vmap(local, (0, None), axis_name="r"))(batch, w)

    @jax.jit
    def one(i: Any) -> Any:
        own = jax.random.fold_in(key, i)
        labels = jax.random.categorical(own, batch[i] @ w)
        return jax.grad(lambda w: loss(logits(w, batch[i]), labels))(w)

    want = 8 * jnp.square(jnp.stack([one(i) for i in range(4)]).mean(0))
    np.testing.assert_allclose(found, np.stack([want] * 4), rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params": None}, "needs params"),
        ({"params": jnp.zeros((3, 4), jnp.int32)}, "dtype int32"),
        ({"loss_fn": lambda logits, labels: logits}, "must be a scalar"),
        ({"count": 0}, "count must be"),
    ],
)
def test_bad_input(changes: dict[str, Any], message: str, key: jax.Array) -> None:
    arguments = {"params": jnp.zeros((3, 4)), "batch": jnp.ones((5, 3)), "key": key}
    arguments |= {"logits_fn": logits, "loss_fn": loss, **changes}
    with pytest.raises(ValueError, match=message):
        estimate(**arguments)
