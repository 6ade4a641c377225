"""Model-based steps (Davis, Drusvyatskiy, 2018): each closed form is the minimum of its model."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.optimizers.proximal.model_based import (
    prox_linear,
    proximal,
    proximal_sgd,
    stochastic_proximal_point,
    truncated_model,
)

# Some ten operations in float64.
F64 = 1e-12
X = np.array([0.7, -1.1])


def step(tx, x=X, **extra):
    x = jnp.asarray(x)
    g = extra.pop("g", jnp.zeros_like(x))
    return np.asarray(tx.update(g, tx.init(x), x, **extra)[0])


def least(model, alpha):
    """The minimum of model(d) + |d|^2 / (2 alpha) over a grid of steps, and the distance of its points."""
    line, apart = np.linspace(-2, 2, 801, retstep=True)
    d = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    return d[np.argmin(model(d) + (d**2).sum(1) / (2 * alpha))], apart


@pytest.mark.parametrize(("outer", "alpha"), list(itertools.product(("abs", "hinge", "square"), (0.05, 5.0))))
def test_prox_linear_is_the_minimum_of_its_model(outer, alpha, x64):
    """c(x) = x0^2 + x0 x1 - 1 is negative at x, and positive with the other sign; the grid is 0.005 apart."""
    h = {"abs": np.abs, "hinge": lambda c: np.maximum(c, 0), "square": lambda c: c**2 / 2}[outer]
    for sign in (1.0, -1.0):
        c = sign * (X[0] ** 2 + X[0] * X[1] - 1)
        slope = sign * np.array([2 * X[0] + X[1], X[0]])
        got = step(prox_linear(alpha, outer=outer), residual_fn=lambda x, s=sign: s * (x[0] ** 2 + x[0] * x[1] - 1))

        def value(d, c=c, slope=slope):
            return h(c + d @ slope) + (d**2).sum(-1) / (2 * alpha)

        want, _ = least(lambda d, c=c, slope=slope: h(c + d @ slope), alpha)
        assert value(got) <= value(want) + F64
        # The model is 1 / alpha convex, and the grid near its minimum: what is as low is the minimum.
        assert np.all(np.abs(got) < 2)


def test_the_square_is_a_damped_gauss_newton_step(x64):
    """(J^T J + I / alpha)^{-1} J^T c in the other form of the system, over two leaves and three residuals."""
    A, b = np.random.default_rng(0).standard_normal((3, 4)), np.array([1.0, -2.0, 0.5])
    x = {"a": jnp.zeros((1, 2)), "b": jnp.zeros(2)}
    flat = lambda x: jnp.concatenate([x["a"].reshape(-1), x["b"]])  # noqa: E731
    for alpha in (0.3, 1e3):
        tx = prox_linear(alpha)
        u = tx.update(x, tx.init(x), x, residual_fn=lambda x: A @ flat(x) - b)[0]
        want = np.linalg.solve(A.T @ A + np.eye(4) / alpha, A.T @ b)
        np.testing.assert_allclose(flat(u), want, rtol=1e-9)  # the condition of the system is some 1e4


def test_several_residuals_have_no_abs():
    with pytest.raises(ValueError, match="residual_fn must return one number"):
        step(prox_linear(1.0, outer="abs"), residual_fn=lambda x: x)


def test_truncated_steps_are_those_of_polyak_or_of_sgd(x64):
    """Polyak's where alpha is large, the gradient's where it is small, none below the bound or at a gradient of 0."""
    g, value = jnp.asarray([3.0, -4.0]), jnp.asarray(2.0)
    np.testing.assert_allclose(step(truncated_model(np.inf), g=g, value=value), -g * 2 / 25, rtol=F64)
    np.testing.assert_allclose(step(truncated_model(0.01), g=g, value=value), -0.01 * g, rtol=F64)
    np.testing.assert_array_equal(step(truncated_model(1.0, lower_bound=2.5), g=g, value=value), 0)
    np.testing.assert_array_equal(step(truncated_model(np.inf), g=0 * g, value=value), 0)
    ours, theirs = truncated_model(0.05, lower_bound=0.5), optax.polyak_sgd(0.05, f_min=0.5, variant="sps+")
    for value in (1.0, 5.0):
        pair = [step(tx, g=g, value=jnp.asarray(value)) for tx in (ours, theirs)]
        np.testing.assert_allclose(*pair, rtol=1e-6)  # optax adds an eps to the norm


def test_a_proximal_step_minimises_the_linear_model_and_the_penalty(x64):
    g, alpha = np.array([2.0, -0.3]), 0.4
    shrink = lambda x, a: gk.linalg.prox_l1(x, 0.5 * a)  # noqa: E731
    got = X + step(proximal_sgd(alpha, shrink), g=jnp.asarray(g))
    d, apart = least(lambda d: d @ g + 0.5 * np.abs(X + d).sum(1), alpha)
    np.testing.assert_allclose(got, X + d, atol=apart)
    wrapped = X + step(proximal(gk.adam(0.1), shrink, learning_rate=alpha), g=jnp.asarray(g))
    want = X - 0.1 * np.sign(g)  # the first step of Adam; its eps is 1e-8
    np.testing.assert_allclose(wrapped, np.sign(want) * np.maximum(np.abs(want) - 0.2, 0), rtol=1e-7)


def test_proximal_gradients_solve_the_lasso_with_exact_zeros(x64):
    """With an orthogonal design the solution is the soft threshold of least squares."""
    target = np.array([1.5, 0.3, -0.8])
    tx = proximal_sgd(0.5, lambda x, a: gk.linalg.prox_l1(x, 0.5 * a))
    x = jnp.zeros(3)
    state = tx.init(x)
    update = jax.jit(lambda x, state: tx.update(x - target, state, x))
    for _ in range(60):  # half of the distance in every step
        u, state = update(x, state)
        x = x + u
    np.testing.assert_allclose(x, [1.0, 0.0, -0.3], atol=F64)
    assert x[1] == 0


def test_the_proximal_point_of_a_quadratic(x64):
    """(I + alpha A)^{-1} x after enough inner steps; one inner step of sgd is a step of sgd."""
    A, alpha = np.array([[2.0, 0.5], [0.5, 1.0]]), 2.0
    grad_fn = lambda x: A @ x  # noqa: E731
    tx = stochastic_proximal_point(alpha, inner=optax.sgd(0.3), inner_steps=80)
    got = X + step(tx, g=grad_fn(jnp.asarray(X)), grad_fn=grad_fn)
    # The inner problem's eigenvalues are 1.3 to 2.8: the error shrinks by 0.61 a step.
    np.testing.assert_allclose(got, np.linalg.solve(np.eye(2) + alpha * A, X), rtol=1e-10)
    one = stochastic_proximal_point(alpha, inner=optax.sgd(0.3), inner_steps=1)
    np.testing.assert_allclose(step(one, g=grad_fn(jnp.asarray(X)), grad_fn=grad_fn), -0.3 * A @ X, rtol=F64)


def test_small_steps_of_every_model_are_those_of_sgd(x64):
    """To first order in alpha = 1e-6; what the loss curves is of second order."""
    f = lambda x: 0.5 * (x[0] * x[1] - 1) ** 2  # noqa: E731
    x, alpha = jnp.asarray(X), 1e-6
    g = jax.grad(f)(x)
    point = stochastic_proximal_point(alpha, inner=optax.sgd(alpha / 2), inner_steps=50)
    steps = {
        "truncated": step(truncated_model(alpha), g=g, value=f(x)),
        "prox-linear": step(prox_linear(alpha), residual_fn=lambda x: x[0] * x[1] - 1),
        "proximal point": step(point, g=g, grad_fn=jax.grad(f)),
    }
    for name, u in steps.items():
        np.testing.assert_allclose(u, -alpha * np.asarray(g), rtol=1e-5, err_msg=name)


def test_prox_linear_descends_where_the_rate_is_far_too_long_for_sgd(x64):
    """Rosenbrock's function is half a sum of squares: the residuals are linear along the valley's side."""
    residual_fn = lambda x: jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])  # noqa: E731
    tx, x = prox_linear(1.0), jnp.asarray([-1.2, 1.0])
    state = tx.init(x)
    update = jax.jit(lambda x, state: tx.update(x, state, x, residual_fn=residual_fn))
    for _ in range(100):
        u, state = update(x, state)
        x = x + u
    np.testing.assert_allclose(x, [1.0, 1.0], atol=1e-6)
