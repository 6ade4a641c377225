"""The projection of AdamP (Heo et al., 2020) on its own."""

import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def project(delta: float, w: object, g: object, **kwargs: object) -> object:
    return updates(gk.project_scale_invariant(optax.identity(), delta=delta, eps=0.0, **kwargs), w, [g])[0]


def test_always_projects_channels(x64: None) -> None:
    w, g = normal(0, 5, 3), normal(1, 5, 3)
    u = project(np.inf, w, g)
    assert_equal(jnp.sum(u * w, axis=0), jnp.zeros(3))
    unit = w / jnp.linalg.norm(w, axis=0, keepdims=True)
    assert_equal(u, g - unit * jnp.sum(unit * g, axis=0, keepdims=True))


def test_never_projects(x64: None) -> None:
    w, g = normal(0, 5, 3), normal(1, 5, 3)
    assert_equal(project(0.0, w, g), g)


def test_whole_tensor_where_channels_are_not_orthogonal_but_the_tensor_is(x64: None) -> None:
    """Two columns whose radial parts cancel: every channel fails the test, the tensor passes it."""
    w = jnp.array([[1.0, 1.0], [0.0, 0.0]])
    g = jnp.array([[1.0, -1.0], [0.3, 0.2]])
    u = project(0.5, w, g)
    assert_equal(jnp.vdot(u, w), 0.0)
    assert_equal(u, g)  # it was orthogonal already, and stays as it is


def test_scale_of_the_weights_does_not_change_the_test(x64: None) -> None:
    w, g = normal(0, 5, 3), normal(1, 5, 3)
    for delta in (0.2, 0.6, 1.0, 1.5):
        assert_equal(project(delta, w, g), project(delta, 1e4 * w, g), atol=1e-12)


def test_vectors_are_left_alone_and_decay_in_full(x64: None) -> None:
    w, g = normal(0, 5), normal(1, 5)
    assert_equal(project(np.inf, w, g, weight_decay=0.5), g + 0.5 * w)


def test_decay_is_reduced_where_projected(x64: None) -> None:
    w, g = normal(0, 5, 3), normal(1, 5, 3)
    difference = project(np.inf, w, g, weight_decay=0.5, wd_ratio=0.2) - project(np.inf, w, g)
    assert_equal(difference, 0.5 * 0.2 * w)
