"""Gradient-regularised Newton: the radius, the order of convergence, the test of a step, and the three solvers."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal

newton = gk.gradient_regularized_newton


def problem(seed: int = 0, n: int = 4) -> tuple[jax.Array, jax.Array]:
    A = normal(seed, n, n)
    return A @ A.T / n + 0.1 * jnp.eye(n), normal(seed + 1, n)


def descend(tx: Any, loss: Any, x: Any, steps: int, **extra: Any) -> tuple[list[Any], list[Any]]:
    grad_fn = jax.grad(loss)
    state, xs, states = tx.init(x), [x], []
    update = jax.jit(lambda x, s: tx.update(grad_fn(x), s, x, value_fn=loss, grad_fn=grad_fn, **extra))
    for _ in range(steps):
        u, state = update(x, state)
        x = jax.tree.map(jnp.add, x, u)
        xs.append(x)
        states.append(state[0])
    return xs, states


def test_on_a_convex_quadratic_the_radius_doubles(x64: None) -> None:
    """Every first attempt is accepted, no step is longer than gamma, and each error is a smaller share of the last."""
    H, x0 = problem()
    xs, states = descend(newton(gamma_init=0.5), lambda x: x @ H @ x / 2, x0, 8)
    assert_equal([s.gamma for s in states], [0.5 * 2.0**t for t in range(1, 9)])
    assert [int(s.metrics["search_steps"]) for s in states] == [1] * 8
    moves = [float(jnp.linalg.norm(b - a)) for a, b in itertools.pairwise(xs)]
    assert all(move <= 0.5 * 2.0**t * (1 + 1e-12) for t, move in enumerate(moves))
    errors = [float(jnp.linalg.norm(H @ x)) for x in xs]
    shares = [b / a for a, b in itertools.pairwise(errors)]
    assert shares[-1] < 1e-3 and all(b < a for a, b in itertools.pairwise(shares))


def test_one_step_in_closed_form(x64: None) -> None:
    H, x = problem()
    g = H @ x
    xs, states = descend(newton(0.5, gamma_init=2.0, adaptive=False), lambda x: x @ H @ x / 2, x, 1)
    lam = jnp.linalg.norm(g) / (2.0 + 1e-8)
    assert_equal(xs[1], x - 0.5 * jnp.linalg.solve(H + lam * jnp.eye(4), g))
    assert float(states[0].gamma) == 2.0


def test_a_step_that_does_not_descend_is_halved(x64: None) -> None:
    """log cosh is flat far out: Newton's step from there overshoots, so the radius shrinks until the test holds."""

    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.log(jnp.cosh(x)))

    x0 = jnp.array([4.0])
    xs, (state,) = descend(newton(gamma_init=1e4), loss, x0, 1)
    tries = int(state.metrics["search_steps"])
    assert tries > 3
    # Halved at every attempt but the last, which doubled it.
    assert_equal(state.gamma, 1e4 / 2 ** (tries - 1) * 2)
    g, lam = jax.grad(loss)(x0), jnp.abs(jax.grad(loss)(x0)[0]) / (1e4 / 2 ** (tries - 1) + 1e-8)
    assert loss(x0) - loss(xs[1]) >= jax.grad(loss)(xs[1])[0] ** 2 / (8 * lam)
    before = x0 - g / (1 / jnp.cosh(x0) ** 2 + lam / 2)  # the attempt before, of twice the radius
    assert loss(x0) - loss(before) < jax.grad(loss)(before)[0] ** 2 / (8 * lam / 2)
    assert abs(float(descend(newton(gamma_init=1e4), loss, x0, 8)[0][-1][0])) < 1e-6


def test_a_matrix_that_is_not_definite_counts_as_a_reject(x64: None) -> None:
    """By every solver: the radius shrinks until H + lambda I is positive definite, and the step descends."""
    a = jnp.array([1.0, -2.0])

    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum(a * x**2 / 2 + 0.1 * x**4)

    x = jnp.array([1.0, 0.3])
    g, h = jax.grad(loss)(x), jax.hessian(loss)(x)
    found = []
    for solver in ("cholesky", "cg", "diag"):
        tx = newton(gamma_init=100.0, solver=solver, cg_tolerance=1e-14)
        xs, states = descend(tx, loss, x, 1, **({"curvature": jnp.diag(h)} if solver == "diag" else {}))
        assert int(states[0].metrics["search_steps"]) > 1 and loss(xs[1]) < loss(x)
        found.append((xs[1], states[0].gamma))
    assert jnp.linalg.norm(g) / found[0][1] * 2 > 1.8  # lambda of the accepted attempt outweighs the curvature
    for x1, gamma in found[1:]:
        assert_equal(x1, found[0][0], rtol=1e-9)
        assert_equal(gamma, found[0][1])


def test_solvers_agree_on_a_tree(x64: None) -> None:
    """Cholesky of the whole matrix and conjugate gradients, with leaves of several ranks."""
    H, _ = problem(3, 7)
    x = {"b": normal(5, 3), "s": jnp.asarray(0.3), "w": normal(6, 3, 1)}

    def loss(x: Any) -> jax.Array:
        flat = jnp.concatenate([x["b"], x["s"][None], x["w"].ravel()])
        return flat @ H @ flat / 2 + jnp.sum(flat**4) / 4

    dense = descend(newton(), loss, x, 3)[0][-1]
    products = descend(newton(solver="cg", cg_tolerance=1e-14), loss, x, 3)[0][-1]
    assert_equal(products, dense, rtol=1e-9)


def test_other_matrices(x64: None) -> None:
    """Fisher's, of example gradients, and any function's."""
    x, G = normal(0, 3), normal(1, 5, 3)
    g = G.mean(0)

    def step(**options: Any) -> Any:
        tx = newton(adaptive=False, **options)
        extra = {"value_fn": jnp.sum, "grad_fn": lambda x: x, "example_grads": G}
        return tx.update(g, tx.init(x), x, **extra)[0]

    lam = jnp.linalg.norm(g) / (1 + 1e-8)
    want = -jnp.linalg.solve(G.T @ G / 5 + lam * jnp.eye(3), g)
    assert_equal(step(curvature="fisher"), want, rtol=1e-10)
    assert_equal(step(curvature="fisher", solver="cg", cg_tolerance=1e-14), want, rtol=1e-9)
    assert_equal(step(curvature=lambda params, v, **extra: G.T @ (G @ v) / 5), want, rtol=1e-10)


def test_a_gradient_of_zeros_gives_no_step(x64: None) -> None:
    for solver in ("cholesky", "cg"):
        tx = newton(solver=solver)
        x = jnp.zeros(3)
        u, state = tx.update(x, tx.init(x), x, value_fn=lambda x: jnp.sum(x**2), grad_fn=lambda x: 2 * x)
        assert_equal(u, x)
        assert float(state[0].gamma) == 1.0


def test_where_no_attempt_gives_a_step_there_is_none(x64: None) -> None:
    """A loss that is nowhere a number: all attempts fail, and nothing is poisoned."""
    tx, x = newton(max_search_steps=5), jnp.ones(2)
    nan = {"value_fn": lambda x: jnp.nan * jnp.sum(x), "grad_fn": lambda x: jnp.nan * x}
    u, state = tx.update(x, tx.init(x), x, **nan)
    assert np.isfinite(np.asarray(u)).all() and float(state[0].gamma) == 1 / 2**5


def test_bad_input() -> None:
    for name, bad in (("gamma_init", 0.0), ("max_search_steps", 0), ("solver", "lu"), ("curvature", "hesian")):
        with pytest.raises(ValueError, match=f"{name} must be"):
            newton(**{name: bad})
    x = jnp.ones(2)
    with pytest.raises(ValueError, match="needs the extra argument value_fn"):
        newton().update(x, newton().init(x), x, grad_fn=lambda x: x)
    with pytest.raises(ValueError, match="needs the extra argument example_grads"):
        tx = newton(curvature="fisher")
        tx.update(x, tx.init(x), x, value_fn=jnp.sum, grad_fn=lambda x: x)
