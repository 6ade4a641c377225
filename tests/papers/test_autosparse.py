"""AutoSparse: the threshold, its gradient, and the schedule of alpha (Kundu et al., 2023)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.layers import sparse_weight
from gradkit.schedules import sigmoid_cosine_decay
from tests.papers.replay import assert_equal, normal


def test_the_weights_do_not_depend_on_alpha_and_the_gradient_does(x64: None) -> None:
    w, s, c = 0.8 * normal(0, 6, 4), jnp.asarray(-0.3), normal(1, 6, 4)
    T = 1 / (1 + np.exp(0.3))
    for alpha in (0.0, 0.4, 1.0):
        y, back = jax.vjp(lambda w, s, alpha=alpha: sparse_weight(w, s, alpha), w, s)
        assert_equal(y, np.sign(w) * np.maximum(np.abs(w) - T, 0))
        dw, ds = back(c)
        r = np.where(np.abs(w) > T, 1.0, alpha)
        assert_equal(dw, r * c)
        assert_equal(ds, -np.sum(np.sign(w) * r * c) * T * (1 - T))
    assert 0 < np.mean(np.abs(w) > T) < 1


def test_alpha_zero_is_soft_thresholding_as_autodiff_has_it(x64: None) -> None:
    """With a threshold of every output unit."""
    w, s, c = 0.8 * normal(0, 6, 4), normal(2, 1, 4), normal(1, 6, 4)
    plain = lambda w, s: jnp.sum(c * jnp.sign(w) * jax.nn.relu(jnp.abs(w) - jax.nn.sigmoid(s)))  # noqa: E731
    own = lambda w, s: jnp.sum(c * sparse_weight(w, s, 0.0))  # noqa: E731
    want, got = (jax.jit(jax.grad(f, (0, 1)))(w, s) for f in (plain, own))
    assert_equal(got, want)


def test_a_sparse_backward_pass_keeps_the_entries_nearest_to_be_used(x64: None) -> None:
    w = jnp.asarray([2.0, -1.0, 0.4, -0.3, 0.2, 0.1, 0.05, -0.01])
    dw = jax.grad(lambda w: jnp.sum(sparse_weight(w, jnp.asarray(0.0), 0.5, backward_density=0.5)))(w)
    np.testing.assert_array_equal(dw, [1.0, 1.0, 0.5, 0.5, 0, 0, 0, 0])
    everything = jax.grad(lambda w: jnp.sum(sparse_weight(w, jnp.asarray(0.0), 0.5, backward_density=1.0)))(w)
    np.testing.assert_array_equal(everything, [1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])


def test_alpha_may_be_traced(x64: None) -> None:
    w = normal(0, 5)
    g = jax.jit(jax.grad(lambda w, a: jnp.sum(sparse_weight(w, jnp.asarray(0.0), a))))
    assert_equal(g(w, 0.3), np.where(np.abs(w) > 0.5, 1.0, 0.3))
    low = jax.grad(lambda w: jnp.sum(sparse_weight(w, jnp.asarray(0.0), 0.3).astype(jnp.float32)))(
        w.astype(jnp.bfloat16)
    )
    assert low.dtype == jnp.bfloat16


def test_the_schedule_is_the_larger_of_both_curves(x64: None) -> None:
    t = np.minimum(np.arange(24), 20) / 20
    cosine, sigmoid = (1 + np.cos(np.pi * t)) / 2, 1 - 1 / (1 + np.exp(6 - 12 * t))
    got = np.asarray(sigmoid_cosine_decay(20)(jnp.arange(24)))
    assert_equal(got, 0.75 * np.maximum(cosine, sigmoid), rtol=1e-10)
    assert (cosine > sigmoid + 1e-3).any() and (sigmoid > cosine + 1e-3).any()
    np.testing.assert_allclose(got[-1], 0.75 * 0.00247, rtol=1e-2)


def test_bad_input() -> None:
    for shape in ((4,), (2, 4), (1, 1, 4)):
        with pytest.raises(ValueError, match=r"threshold_param must be a scalar.*write a scalar"):
            sparse_weight(jnp.ones((6, 4)), jnp.zeros(shape), 0.5)
    with pytest.raises(ValueError, match="alpha must be"):
        sparse_weight(jnp.ones(4), jnp.zeros(()), 1.5)
    with pytest.raises(ValueError, match="backward_density must be"):
        sparse_weight(jnp.ones(4), jnp.zeros(()), 0.5, backward_density=0.0)
