"""Directions of bilevel problems, against closed forms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.gradients import bilevel_directions
from tests.papers.replay import assert_equal, normal

RNG = np.random.default_rng(0)
A, B, C = (RNG.standard_normal(shape) for shape in ((4, 4), (4, 3), 3))
H = A @ A.T + np.eye(4)


def upper(x: Any, y: Any, batch: Any) -> jax.Array:
    """With a term of x alone, which the released code leaves out."""
    return jnp.sum(jnp.square(y["a"] - 1)) / 2 + C @ x + jnp.sum(x**2) / 2 + 0 * jnp.sum(batch)


def lower(x: Any, y: Any, batch: Any) -> jax.Array:
    return y["a"] @ H @ y["a"] / 2 - y["a"] @ (B @ x) + batch * jnp.sum(y["a"])


def at_the_solution(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y*, v*, and the gradient of F(x, y*(x)) in closed form, with batch 0."""
    h, b = H, B
    y = np.linalg.solve(h, b @ x)
    v = np.linalg.solve(h, y - 1)
    return y, v, C + x + b.T @ v


def test_where_the_lower_problem_is_solved_it_is_the_hypergradient(x64: None) -> None:
    x = np.array([0.5, -1.0, 2.0])
    y, v, want = at_the_solution(x)
    z = {"x": jnp.asarray(x), "y": {"a": jnp.asarray(y)}, "v": {"a": jnp.asarray(v)}}
    value, d = jax.jit(bilevel_directions(upper, lower))(z, jnp.array(0.0), jnp.array(0.0))
    assert_equal(d["x"], want, rtol=1e-10)
    for name in "yv":
        np.testing.assert_allclose(d[name]["a"], 0, atol=1e-12)
    assert_equal(value, upper(z["x"], z["y"], jnp.array(0.0)))
    exact = jax.grad(lambda x: upper(x, {"a": jnp.linalg.solve(H, B @ x)}, 0.0))(z["x"])
    assert_equal(d["x"], exact, rtol=1e-10)


def test_anywhere_the_formulas(x64: None) -> None:
    """And each function gets its own batch."""
    x, y, v = normal(3, 3), normal(4, 4), normal(5, 4)
    z = {"x": x, "y": {"a": y}, "v": {"a": v}}
    _, d = bilevel_directions(upper, lower)(z, jnp.array(7.0), jnp.array(0.5))
    assert_equal(d["y"]["a"], H @ y - B @ x + 0.5)
    assert_equal(d["v"]["a"], H @ v - (y - 1))
    assert_equal(d["x"], C + x + B.T @ v)


def test_a_method_per_variable_solves_the_problem(x64: None) -> None:
    """As a gradient tree of a chain: Adam on x, plain steps on y and v."""
    tx = optax.partition({"x": gk.adam(0.05), "y": gk.sgd(0.1), "v": gk.sgd(0.1)}, {name: name for name in "xyv"})
    z = {"x": jnp.zeros(3), "y": {"a": jnp.zeros(4)}, "v": {"a": jnp.zeros(4)}}
    fn = bilevel_directions(upper, lower)

    def step(carry: Any, _: None) -> Any:
        z, state = carry
        updates, state = tx.update(fn(z, jnp.array(0.0), jnp.array(0.0))[1], state, z)
        return (optax.apply_updates(z, updates), state), None

    (end, _), _ = jax.jit(lambda z: jax.lax.scan(step, (z, tx.init(z)), None, 1500))(z)
    assert np.abs(at_the_solution(np.asarray(end["x"]))[2]).max() < 1e-3


def test_bad_input() -> None:
    fn = bilevel_directions(upper, lower)
    with pytest.raises(ValueError, match="z must be a dictionary of x, y and v, got"):
        fn({"x": jnp.ones(3)})
    with pytest.raises(ValueError, match="bilevel_directions: v"):
        fn({"x": jnp.ones(3), "y": {"a": jnp.ones(4)}, "v": {"b": jnp.ones(4)}})
    with pytest.raises(ValueError, match="lower must be callable"):
        bilevel_directions(upper, None)
