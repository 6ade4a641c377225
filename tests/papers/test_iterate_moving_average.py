"""Momentum as an average of iterates (Handbook of convergence theorems, Garrigos, Gower, 2023)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, descend, normal


@pytest.mark.parametrize("slope", [0.5, 2.0])
def test_it_is_heavy_ball(slope: float, x64: None) -> None:
    """gamma_t = eta_t / (1 + lam_{t+1}), beta_t = lam_t eta_{t-1} / (eta_t (1 + lam_t)), with rates that change too."""
    x, A, eta = normal(0, 5), jnp.linspace(0.1, 1.0, 5), lambda t: 0.9 / (1 + 0.1 * jnp.asarray(t, float))
    lam = lambda t: slope * t  # noqa: E731
    tx = gk.iterate_moving_average(optax.sgd(eta), lam=lam)
    got = descend(tx, x, lambda x: A * x, 8)
    m, want = 0 * np.asarray(x), [np.asarray(x)]
    for t in range(8):
        beta = lam(t) * eta(t - 1) / (eta(t) * (1 + lam(t)))
        m = beta * m + np.asarray(A) * want[-1]
        want.append(want[-1] - eta(t) / (1 + lam(t + 1)) * m)
    assert_equal(got, want)


def test_the_last_iterate_keeps_the_bound_of_the_average(x64: None) -> None:
    """f(x_T) - f* <= |x_0 - x*|^2 / (2 eta (T + 1)) with eta = 1 / (4 L): of the last iterate, the rate 1 / T of the
    average of gradient descent."""
    start, A = normal(0, 20), jnp.logspace(-4, 0, 20)
    x = jax.jit(lambda x: descend(gk.iterate_moving_average(optax.sgd(0.25)), x, lambda x: A * x, 40)[-1])(start)
    assert float(A @ x**2) / 2 <= float(start @ start) / (2 * 0.25 * 41)


def test_the_parameters_are_evaluated(x64: None) -> None:
    x = normal(0, 3)
    tx = gk.iterate_moving_average(gk.sgd(0.1))
    u, state = tx.update(x, tx.init(x), x)
    assert_equal(gk.eval_params(state, x + u), x + u, rtol=0, atol=0)
    with pytest.raises(ValueError, match="lam must be callable"):
        gk.iterate_moving_average(gk.sgd(0.1), lam=2.0)  # pyright: ignore[reportArgumentType]
