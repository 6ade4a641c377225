"""The sandwich rule: a sum over networks, distilled from the largest."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradkit as gk

X, Y = np.random.default_rng(0).standard_normal((4, 3)), np.array([0, 1, 1, 0])
W = np.random.default_rng(1).standard_normal((3, 2))


def loss_fn(w: jax.Array, config: Any, targets: Any = None) -> tuple[jax.Array, jax.Array]:
    """Softmax regression on the first inputs; the distillation is a cross entropy with the largest's probabilities."""
    logits = jnp.asarray(X) @ jnp.where(jnp.arange(3)[:, None] < config, w, jnp.zeros_like(w))
    wanted = jnp.eye(2)[Y] if targets is None else jax.nn.softmax(targets)
    return -jnp.sum(wanted * jax.nn.log_softmax(logits)), logits


def test_a_network_that_is_the_teacher_adds_nothing(x64: None) -> None:
    fn = gk.gradients.sandwich_gradient(loss_fn, lambda key: 3, 1, largest=3, smallest=3)
    value, g = fn(jnp.asarray(W), key=0)
    want_value, want = jax.value_and_grad(lambda w: loss_fn(w, 3)[0])(jnp.asarray(W))
    np.testing.assert_allclose(g, want, atol=1e-14)
    np.testing.assert_allclose(value, want_value, rtol=1e-15)


def test_on_labels_it_is_a_sum(x64: None) -> None:
    labelled = lambda w, config, targets=None: loss_fn(w, config)  # noqa: E731
    fn = gk.gradients.sandwich_gradient(labelled, lambda key: 3, 0, largest=3, smallest=3)
    want = jax.grad(lambda w: loss_fn(w, 3)[0])(jnp.asarray(W))
    np.testing.assert_allclose(fn(jnp.asarray(W), key=0)[1], 2 * want, rtol=1e-14)


def test_terms_are_weighed_and_targets_have_no_gradient(x64: None) -> None:
    fn = gk.gradients.sandwich_gradient(
        loss_fn, lambda key: jax.random.randint(key, (), 1, 3), 2, largest=3, smallest=1
    )
    w = jnp.asarray(W)
    teacher = loss_fn(w, 3)[1]
    configs = [1, *(int(jax.random.randint(jax.random.fold_in(jax.random.key(5), j), (), 1, 3)) for j in (1, 2))]
    others = sum(np.asarray(jax.grad(lambda w, c=c: loss_fn(w, c, teacher)[0])(w)) for c in configs)
    own = np.asarray(jax.grad(lambda w: loss_fn(w, 3)[0])(w))
    for weight in (0.0, 0.25, 1.0):
        np.testing.assert_allclose(fn(w, key=5, weight=weight)[1], own + weight * others, rtol=1e-13)
