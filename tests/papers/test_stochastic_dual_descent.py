"""Stochastic dual descent for Gaussian processes (Lin et al., 2023)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.optimizers.kernels.stochastic_dual_descent import dual_gradient, stochastic_dual_descent

RNG = np.random.default_rng(0)
N, NOISE = 24, 0.1
INPUTS = np.sort(RNG.uniform(0, 3, N))
K = np.exp(-((INPUTS[:, None] - INPUTS[None]) ** 2) / 2)
Y = np.sin(2 * INPUTS) + 0.1 * RNG.standard_normal(N)


def solved(targets, steps, **options):
    """The average after steps on batches of six, drawn with replacement."""
    tx = stochastic_dual_descent(0.01, average_decay=0.99, **options)
    rows = jnp.asarray(RNG.integers(0, N, (steps, 6)))

    def run(y):
        def step(carry, idx):
            alpha, state = carry
            g = dual_gradient(jnp.asarray(K)[idx], alpha, y, NOISE, idx)
            u, state = tx.update(g, state, alpha)
            return (alpha + u, state), None

        alpha = jnp.zeros(N)
        (alpha, state), _ = jax.lax.scan(step, (alpha, tx.init(alpha)), rows)
        return gk.eval_params(state, alpha)

    return np.asarray(jax.jit(jax.vmap(run))(jnp.asarray(targets)))


@pytest.mark.parametrize("nesterov", [True, False])
def test_it_comes_to_the_exact_solution_for_several_right_hand_sides(nesterov, x64):
    """(K + s^2 I)^{-1} y: the noise of the batches vanishes with the residual, so the solution is exact.

    The smallest eigenvalue is s^2 = 0.1 and the rate 0.01, as if 0.1 with the momentum: the slowest mode shrinks by
    1 - 0.01 a step, as the average forgets, so 4000 steps leave exp(-40).
    """
    targets = np.stack([Y, RNG.standard_normal(N)])
    want = np.linalg.solve(K + NOISE * np.eye(N), targets.T).T
    np.testing.assert_allclose(solved(targets, 4000, nesterov=nesterov), want, atol=1e-8)


def test_the_gradient_is_unbiased_and_duplicates_add(x64):
    """Over all batches of one the mean is the gradient; what is drawn twice counts twice."""
    alpha = jnp.asarray(RNG.standard_normal(N))
    full = (K + NOISE * np.eye(N)) @ np.asarray(alpha) - Y
    one = lambda i: dual_gradient(jnp.asarray(K)[i[None]], alpha, jnp.asarray(Y), NOISE, i[None])  # noqa: E731
    every = jax.vmap(one)(jnp.arange(N))
    np.testing.assert_allclose(every.mean(0), full, rtol=1e-10, atol=1e-12)
    idx = jnp.array([3, 3, 5])
    g = dual_gradient(jnp.asarray(K)[idx], alpha, jnp.asarray(Y), NOISE, idx)
    want = np.zeros(N)
    np.add.at(want, np.array([3, 3, 5]), full[np.array([3, 3, 5])] * N / 3)
    np.testing.assert_allclose(g, want, rtol=1e-10, atol=1e-12)


def test_the_parameters_are_where_the_gradient_is_taken(x64):
    """Five steps of the paper's form, a and v apart, in NumPy."""
    A, y = K[:4, :4] + NOISE * np.eye(4), Y[:4]
    tx, p = stochastic_dual_descent(0.2, momentum=0.8, average_decay=0.7), jnp.zeros(4)
    state = tx.init(p)
    a, v, m = np.zeros((3, 4))
    for _ in range(5):
        ahead = a + 0.8 * v
        np.testing.assert_allclose(p, ahead, rtol=1e-12, atol=1e-13)
        v = 0.8 * v - 0.2 * (A @ ahead - y)
        a = a + v
        m = 0.3 * a + 0.7 * m
        u, state = tx.update(jnp.asarray(A) @ p - y, state, p)
        p = p + u
        np.testing.assert_allclose(gk.eval_params(state, p), m, rtol=1e-12)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"kernel_rows must be \(B, N\)"):
        dual_gradient(jnp.ones((2, 3)), jnp.ones(4), jnp.ones(4), 0.1, jnp.array([0, 1]))
