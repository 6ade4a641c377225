"""The parts of a minibatch's gradient that its classes have."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk


def test_parts_of_classes_add_up_to_the_gradient_of_the_mean_loss(x64: None) -> None:
    x, y = np.random.default_rng(0).standard_normal((6, 3)), np.array([0, 2, 2, 0, 0, 2])
    fn = gk.gradients.per_class_gradients(lambda w: (jnp.square(jnp.asarray(x) @ w), jnp.asarray(y)), 3)
    w = np.array([1.0, -1.0, 2.0])
    losses, gradients = fn(jnp.asarray(w))
    own = 2 * (x @ w)[:, None] * x / 6
    want = np.stack([own[y == c].sum(0) for c in range(3)])
    np.testing.assert_allclose(gradients.stacked(), want, atol=1e-14)
    np.testing.assert_allclose(losses, [((x @ w) ** 2)[y == c].sum() / 6 for c in range(3)], rtol=1e-14)


def test_what_is_no_pair_of_losses_and_classes_is_refused() -> None:
    fn = gk.gradients.per_class_gradients(lambda w: jnp.square(w), 2)
    with pytest.raises(ValueError, match=r"must return \(losses, classes\)"):
        fn(jnp.ones(3))
