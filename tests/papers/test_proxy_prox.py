"""Proximal steps on a proxy (Woodworth, Mishchenko, Bach, 2023)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit.optimizers.proximal.proxy_prox import proxy_prox

RNG = np.random.default_rng(0)
Q = np.linalg.qr(RNG.standard_normal((5, 5)))[0]
A = Q @ np.diag([1.0, 3.0, 10.0, 30.0, 100.0]) @ Q.T
X = RNG.standard_normal(5)


def step(proxy, eta, inner_steps=1, rate=0.01, g=A @ X):
    tx = proxy_prox(eta, proxy, inner=optax.sgd(rate), inner_steps=inner_steps)
    x = jnp.asarray(X)
    return X + np.asarray(jax.jit(lambda g: tx.update(g, tx.init(x), x)[0])(jnp.asarray(g)))


def test_with_the_loss_as_its_own_proxy_it_is_the_proximal_point(x64):
    """The inner problem's eigenvalues are 1.5 to 100.5: at a rate of 1 / 100 the error shrinks by 0.985 a step."""
    got = step(lambda x: x @ A @ x / 2, 2.0, inner_steps=2000)
    np.testing.assert_allclose(got, np.linalg.solve(np.eye(5) + 2 * A, X), atol=1e-10)


def test_without_a_proxy_it_is_sgd_at_rate_eta(x64):
    """|y - x - eta g|^2 / (2 eta): one inner step at rate eta is all of it."""
    np.testing.assert_allclose(step(lambda x: 0 * jnp.sum(x), 0.3, 1, 0.3), X - 0.3 * A @ X, rtol=1e-12)


def test_it_converges_at_the_rate_of_the_difference_not_of_the_loss(x64):
    """With |A - P| = delta and eta = 1 / delta the error is multiplied by (P + delta)^{-1} (P + delta - A): for A >= 1
    below delta / (1 + delta) in norm here, where descent at 1 / 100 shrinks the smallest mode by 0.99."""
    E = RNG.standard_normal((5, 5))
    E = (E + E.T) / 2
    delta = 0.5
    P = A + delta * E / np.linalg.norm(E, 2)
    eta = 1 / delta
    M = np.linalg.solve(P + delta * np.eye(5), P + delta * np.eye(5) - A)
    got = step(lambda x: x @ P @ x / 2, eta, inner_steps=3000)
    np.testing.assert_allclose(got, M @ X, atol=1e-10)
    assert np.abs(np.linalg.eigvals(M)).max() < 0.7
