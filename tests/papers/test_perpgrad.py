"""perpGrad (Prieto et al., 2025)."""

import jax
import jax.numpy as jnp
import numpy as np

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_orthogonal_to_the_weights_with_the_length_of_the_gradient(x64: None) -> None:
    x, g = normal(0, 4, 3), normal(1, 4, 3)
    u = updates(gk.perpgrad(), x, [g])[0]
    assert_equal(jnp.vdot(u, x), 0.0, atol=1e-13)
    assert_equal(jnp.linalg.norm(u), jnp.linalg.norm(g))
    bare = updates(gk.perpgrad(rescale=False), x, [g])[0]
    assert_equal(bare, g - jnp.vdot(x, g) / jnp.vdot(x, x) * x)


def test_gradients_of_scale_invariant_losses_pass(x64: None) -> None:
    x = normal(0, 12)
    target = normal(1, 12)
    g = jax.grad(lambda x: jnp.vdot(x / jnp.linalg.norm(x), target))(x)
    assert_equal(updates(gk.perpgrad(), x, [g])[0], g)


def test_parallel_gradients_vanish(x64: None) -> None:
    x = normal(0, 12)
    assert not updates(gk.perpgrad(), x, [3 * x])[0].any()
    assert not updates(gk.perpgrad(), jnp.ones((1, 1)), [jnp.full((1, 1), 0.3)])[0].any()


def test_zero_weights_let_the_gradient_through(x64: None) -> None:
    g = normal(0, 5)
    assert_equal(updates(gk.perpgrad(), 0 * g, [g])[0], g)
    assert np.isfinite(updates(gk.perpgrad(eps=0.0), 0 * g, [g])[0]).all()


def test_orthogonalize_to_params_does_not_rescale(x64: None) -> None:
    x, g = normal(0, 3, 4), normal(1, 3, 4)
    tx = gk.orthogonalize_to_params()
    o = tx.update(g, tx.init(x), x)[0]
    assert_equal(o, g - jnp.vdot(x, g) / jnp.vdot(x, x) * x, rtol=1e-12)
