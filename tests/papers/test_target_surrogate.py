"""Target-based surrogates (Lavington et al., 2023)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.optimizers.proximal.target_surrogate import target_surrogate

RNG = np.random.default_rng(0)
A, y = RNG.standard_normal((8, 3)), RNG.standard_normal(8)
BATCH = (jnp.asarray(A, jnp.float32), jnp.asarray(y, jnp.float32))


def wide():
    return jnp.asarray(A), jnp.asarray(y)


def line(w, batch):
    return batch[0] @ w


def square(z, batch):
    return (z - batch[1]) ** 2 / 2


def test_one_inner_step_of_sgd_is_a_step_of_sgd(x64):
    """Also of a model that is not linear: the first gradient of the surrogate is the chain rule."""
    model = lambda w, batch: jnp.tanh(batch[0] @ w)  # noqa: E731
    w = jnp.asarray(RNG.standard_normal(3))
    step = target_surrogate(model, square, optax.sgd(0.3), 1, learning_rate=0.7)
    want = w - 0.3 * jax.grad(lambda w: jnp.mean(square(model(w, wide()), wide())))(w)
    got, _, value = step(w, None, wide())
    np.testing.assert_allclose(got, want, rtol=1e-13)
    np.testing.assert_allclose(value, np.mean((np.tanh(A @ np.asarray(w)) - y) ** 2 / 2), rtol=1e-13)


@pytest.mark.parametrize("eta", [1.0, 0.25])
def test_the_exact_surrogate_fits_the_targets(eta, x64):
    """A linear model is fitted to z_t - eta G by least squares: with eta = 1 / L = 1 to y itself, in one step."""
    w = RNG.standard_normal(3)
    # The Hessian of the surrogate is A^T A / (8 eta): a rate of eta / 2 is stable, and 600 steps are exact.
    step = target_surrogate(line, square, optax.sgd(0.5 * eta), 600, learning_rate=eta)
    got, _, _ = jax.jit(step)(jnp.asarray(w), None, wide())
    z = A @ w
    want = np.linalg.lstsq(A, z - eta * (z - y), rcond=None)[0]
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_a_mean_loss_is_refused():
    step = target_surrogate(line, lambda z, b: jnp.mean(square(z, b)), optax.sgd(0.1), 1, learning_rate=1.0)
    with pytest.raises(ValueError, match="one loss per example"):
        step(jnp.zeros(3), None, BATCH)


def test_the_inner_state_goes_on_and_schedules_count(x64):
    """Two steps of two inner ones with momentum, at eta = 1 and 1/2, written out."""
    step = target_surrogate(line, square, gk.sgd(0.1, momentum=0.9), 2, learning_rate=lambda t: 1.0 / (1 + t))
    w, state, _ = step(jnp.zeros(3), None, wide(), 0)
    w, _, _ = step(w, state, wide(), 1)
    want, trace = np.zeros(3), np.zeros(3)
    for eta in (1.0, 0.5):
        z = A @ want
        for _ in range(2):
            trace = 0.9 * trace + A.T @ (z - y + (A @ want - z) / eta) / 8
            want = want - 0.1 * trace
    np.testing.assert_allclose(np.asarray(w), want, rtol=1e-12)
