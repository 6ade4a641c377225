"""StableMax and its cross entropy (Prieto et al., 2025)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.losses import log_stablemax, stablemax_cross_entropy
from tests.papers.replay import assert_equal, normal


def s(z: np.ndarray) -> np.ndarray:
    return np.where(z >= 0, z + 1, 1 / (1 - np.minimum(z, 0)))


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_probabilities_are_shares_of_s(axis: int, x64: None) -> None:
    z = np.asarray(5 * normal(0, 4, 6))
    assert_equal(jnp.exp(log_stablemax(jnp.asarray(z), axis=axis)), s(z) / s(z).sum(axis, keepdims=True))


def test_its_slope_has_no_hole_at_zero(x64: None) -> None:
    """Of two classes, with the second logit 0: log p_1 = -log(1 + 1 / s), whose slope in log s is 1 - p_1."""
    slope = jax.grad(lambda z: log_stablemax(jnp.stack([z, jnp.zeros(())]))[0])
    for z in (-3.0, -1e-9, 0.0, 2.0):
        p = s(np.array(z)) / (1 + s(np.array(z)))
        assert_equal(slope(jnp.asarray(z)), (1 - p) / (1 + abs(z)))


def test_a_flipped_sign_is_a_reciprocal(x64: None) -> None:
    """s(-z) = 1 / s(z): differences of log-probabilities change their sign."""
    a, b = (log_stablemax(z) for z in (normal(0, 6), -normal(0, 6)))
    assert_equal(jnp.diff(a), -jnp.diff(b))


def test_the_loss_of_a_fitted_example_does_not_vanish() -> None:
    """In float32, at a margin of 200, softmax has the loss 0 and the gradient 0; here the loss is log(1 + 1 / 201), and
    its gradient along the margin -1 / (201 * 202)."""
    loss = lambda z: stablemax_cross_entropy(jnp.stack([z, jnp.zeros(())]), jnp.array(0))  # noqa: E731
    assert jax.nn.log_softmax(jnp.array([200.0, 0.0]))[0] == 0
    # log p is a difference of numbers near 5.3, each rounded by 5.3 * 2^-24.
    np.testing.assert_allclose(loss(jnp.float32(200)), np.log1p(1 / 201), atol=4 * 5.3 * 2**-24)
    np.testing.assert_allclose(jax.grad(loss)(jnp.float32(200)), -1 / (201 * 202), atol=4 / 201 * 2**-24)


def test_labels_pick_and_dtypes_are_wide(x64: None) -> None:
    z, labels = normal(0, 3, 2, 5), jnp.array([[0, 4], [2, 2], [1, 3]])
    want = -np.take_along_axis(np.asarray(log_stablemax(z)), np.asarray(labels)[..., None], -1)[..., 0]
    assert_equal(jax.jit(stablemax_cross_entropy)(z, labels), want)
    assert stablemax_cross_entropy(z.astype(jnp.bfloat16), labels).dtype == jnp.float32
    outside = stablemax_cross_entropy(z, labels.at[0, 0].set(5).at[0, 1].set(-1))
    assert np.isnan(outside[0]).all() and np.isfinite(outside[1:]).all()
    assert np.isnan(stablemax_cross_entropy(z.at[1, 1, 0].set(jnp.nan), labels)[1, 1])


def test_bad_input() -> None:
    for labels in (jnp.zeros((2, 3)), jnp.zeros((3,), int), jnp.zeros((2, 3), int)):
        with pytest.raises(ValueError, match="labels must be integers of shape"):
            stablemax_cross_entropy(jnp.ones((2, 3)), labels)
    for z, axis in ((jnp.ones((2, 3), int), -1), (jnp.ones((2, 3)), 2)):
        with pytest.raises(ValueError, match="logits must be"):
            log_stablemax(z, axis=axis)
    with pytest.raises(ValueError, match="axis must be"):
        log_stablemax(jnp.ones(2), axis=-2)
