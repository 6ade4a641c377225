"""Shifted parameters and eval_params."""

import jax
import jax.numpy as jnp
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, descend, normal


def test_constant_shift_of_zero_is_the_inner_method(x64: None) -> None:
    x = {"a": normal(0, 3), "b": normal(1, 2, 2)}
    inner = gk.adamw(0.1)
    shifted = gk.shifted_parameters(inner, lambda u: jax.tree.map(jnp.zeros_like, u))
    gradient = lambda x: jax.tree.map(lambda v: v**3 - v, x)  # noqa: E731
    assert_equal(descend(shifted, x, gradient, 4), descend(inner, x, gradient, 4))


def test_nesterovs_accelerated_gradient(x64: None) -> None:
    """Gradient at x - momentum v, written out, against the shift by momentum times the last update."""
    x = normal(0, 5)
    tx = gk.shifted_parameters(gk.sgd(0.05, momentum=0.9), lambda u: 0.9 * u)
    state, y, true, v = tx.init(x), x, x, jnp.zeros(5)
    for _ in range(6):
        g = y**3 - y
        assert_equal(y, true - 0.9 * 0.05 * v)
        u, state = tx.update(g, state, y)
        y = y + u
        v = 0.9 * v + g
        true = true - 0.05 * v
        assert_equal(gk.eval_params(state, y), true)


def test_eval_params_finds_the_method_wherever_it_is(x64: None) -> None:
    import optax

    x = {"a": normal(0, 3), "b": normal(1, 3)}
    inner = gk.xgrad(gk.sgd(0.1))
    tx = optax.chain(optax.identity(), inner)
    state = tx.init(x)
    u, state = tx.update(x, state, x)
    y = optax.apply_updates(x, u)
    assert_equal(gk.eval_params(state, y), jax.tree.map(lambda v: 0.9 * v, x))
    assert gk.eval_params(gk.adam(0.1).init(x), x) is x
    both = optax.chain(inner, inner)
    with pytest.raises(ValueError, match="both have an evaluation point for the leaf 'a'"):
        gk.eval_params(both.init(x), x)
