"""FairGrad: the equation of its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.aggregation import fairgrad
from gradkit.aggregation.fairgrad import fair_weights
from tests.papers.stacks import aggregate, conflicting, draw

solve = jax.jit(lambda G, alpha: fair_weights(G, alpha, 100))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 2.0, 10.0])
def test_the_equation_holds(alpha: float, x64: None) -> None:
    """Also for gradients that conflict, and whose norms differ by a factor of a million."""
    for seed, scales in ((0, [1.0, 1, 1, 1]), (1, [1.0, 10, 0.1, 3]), (2, [1e-3, 1e3, 1, 1])):
        J = conflicting(seed) * np.array(scales)[:, None]
        w = np.asarray(solve(jnp.asarray(J @ J.T), jnp.asarray(alpha)))
        assert (w > 0).all()
        # Sums of products as large as this cancel.
        size = np.abs(J @ J.T) @ w + w ** (-1 / alpha)
        np.testing.assert_allclose((J @ J.T @ w - w ** (-1 / alpha)) / size, 0, atol=1e-8)


def test_alpha_zero_is_the_mean_and_nobody_gets_worse(x64: None) -> None:
    J = conflicting(3)
    np.testing.assert_allclose(aggregate(fairgrad(alpha=0.0), J), J.mean(0), rtol=1e-13)
    assert (J @ aggregate(fairgrad(), J) > 0).all()


def test_orthogonal_gradients_have_a_closed_form_and_scale(x64: None) -> None:
    """w_i = |g_i|^(-2 alpha / (1 + alpha))."""
    Q, n, alpha = np.linalg.qr(draw(4, 9))[0][:3], np.array([0.5, 2.0, 4.0]), 2.0
    want = n ** (1 - 2 * alpha / (1 + alpha)) @ Q
    # Squared Newton decrements of some roundings.
    np.testing.assert_allclose(aggregate(fairgrad(alpha=alpha), n[:, None] * Q), want, atol=1e-12)
    scaled = aggregate(fairgrad(alpha=alpha), 1e3 * n[:, None] * Q)
    np.testing.assert_allclose(scaled, 1e3 ** ((1 - alpha) / (1 + alpha)) * want, atol=1e-12)


def test_a_zero_gradient_is_left_out(x64: None) -> None:
    J = draw(5)
    with_zero = np.insert(J, 1, 0, axis=0)
    np.testing.assert_allclose(aggregate(fairgrad(), with_zero), aggregate(fairgrad(), J), rtol=1e-10)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="alpha must be in"):
        fairgrad(alpha=-1.0)
