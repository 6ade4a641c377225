"""Forward gradients (Baydin et al., 2022)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit import sgd
from gradkit.gradients import forward_gradient
from gradkit.training import make_train_step
from tests.papers.replay import assert_equal, normal


def loss(params: dict, x: jax.Array) -> jax.Array:
    return jnp.mean(jnp.tanh(x @ params["kernel"] + params["bias"][None]) ** 2)


def setting() -> tuple[dict, jax.Array]:
    return {"kernel": normal(0, 3, 2), "bias": normal(1, 2)}, normal(2, 5, 3)


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x).reshape(len(x), -1) for x in jax.tree.leaves(tree)], axis=1)


@pytest.mark.parametrize(("distribution", "excess"), [("normal", 1), ("rademacher", -1)])
@pytest.mark.parametrize("K", [1, 2])
def test_mean_and_second_moment_over_keys(distribution: str, excess: int, K: int, x64: None) -> None:
    """E g is the gradient, and E |g|^2 = (1 + (n + 1) / K) |grad|^2 of normal directions, n - 1 of signs."""
    params, x = setting()
    fn = forward_gradient(loss, K, distribution=distribution)
    draws = 4000
    values, g = jax.jit(jax.vmap(lambda key: fn(params, x, key=key)))(jax.random.split(jax.random.key(0), draws))
    assert_equal(values, jnp.full(draws, loss(params, x)))
    want = np.concatenate([np.asarray(v).ravel() for v in jax.tree.leaves(jax.grad(loss)(params, x))])
    got, n, square = flat(g), want.size, np.sum(want**2)
    # Five standard errors, as the draws themselves have them.
    error = 5 * got.std(axis=0) / np.sqrt(draws)
    assert np.all(np.abs(got.mean(axis=0) - want) < error) and np.all(error < 0.5 * np.sqrt(square))
    squares = np.sum(got**2, axis=1)
    want_square = (1 + (n + excess) / K) * square
    assert abs(squares.mean() - want_square) < 5 * squares.std() / np.sqrt(draws)


def test_signs_have_a_length_that_the_slope_gives(x64: None) -> None:
    """|g|^2 = n d^2 in every draw, d the slope along the direction; d = 1 parameter: exact."""
    params, x = setting()
    n = 8
    _, g = forward_gradient(loss, distribution="rademacher")(params, x, key=3)
    g = np.concatenate([np.asarray(v).ravel() for v in jax.tree.leaves(g)])
    v = np.sign(g)
    exact = np.concatenate([np.asarray(v).ravel() for v in jax.tree.leaves(jax.grad(loss)(params, x))])
    np.testing.assert_allclose(np.abs(v @ exact), np.abs(g), rtol=1e-12)
    np.testing.assert_allclose(np.sum(g**2), n * (v @ exact) ** 2, rtol=1e-12)
    one = forward_gradient(lambda w: jnp.sin(w), distribution="rademacher")(jnp.asarray(0.7), key=5)
    np.testing.assert_allclose(one, (np.sin(0.7), np.cos(0.7)), rtol=1e-12)


def test_directions_in_chunks_are_the_same_directions(x64: None) -> None:
    params, x = setting()
    one = jax.jit(lambda: forward_gradient(loss, 6)(params, x, key=2))()
    many = jax.jit(lambda: forward_gradient(loss, 6, chunk=3)(params, x, key=2))()
    assert_equal(one, many)


def test_replicas_with_parts_of_the_batch_have_the_gradient_of_the_whole(x64: None) -> None:
    """Same key, same direction: the mean of the slopes is the slope of the mean."""
    params, x = setting()
    x = jnp.concatenate([x, 2 * x[:1]]).reshape(2, 3, 3)
    fn = forward_gradient(loss, 2, axis_name="replica")
    parts = jax.jit(jax.vmap(lambda x: fn(params, x, key=1), axis_name="replica"))(x)
    whole = forward_gradient(loss, 2)(params, x.reshape(6, 3), key=1)
    for r in range(2):
        assert_equal(jax.tree.map(lambda a, r=r: a[r], parts), whole, rtol=1e-11)


def test_nothing_is_differentiated_backward() -> None:
    """The program has no transpose: a function that only goes forward is enough, and a key is needed."""
    params = {"w": jnp.ones((2,), jnp.bfloat16)}
    steps = lambda p: jax.lax.while_loop(lambda s: s[1] < 3, lambda s: (s[0] * 2, s[1] + 1), (jnp.sum(p["w"]), 0))[0]  # noqa: E731
    value, g = forward_gradient(steps)(params, key=0)
    assert float(value) == 16.0 and g["w"].dtype == jnp.bfloat16


def test_what_has_no_derivative_in_forward_mode_is_named() -> None:
    @jax.custom_vjp
    def squared_backward(x: jax.Array) -> jax.Array:
        return x * x

    squared_backward.defvjp(lambda x: (x * x, x), lambda x, c: (2 * c * x,))
    with pytest.raises(ValueError, match=r"forward mode, got jax.custom_vjp functions \(squared_backward\)"):
        forward_gradient(jax.jit(lambda x: squared_backward(x) + 1))(jnp.array(1.0), key=0)
    with pytest.raises(ValueError, match=r"needs a random key: .*key="):
        forward_gradient(jnp.sum)(jnp.ones(2))
    with pytest.raises(ValueError, match="only floating point leaves"):
        forward_gradient(lambda p: jnp.sum(p["w"]))({"w": jnp.ones(2), "n": jnp.ones(2, jnp.int32)}, key=0)
    with pytest.raises(ValueError, match=r"must return a scalar, got an array of shape \(2,\)"):
        forward_gradient(lambda p: p)(jnp.ones(2), key=0)
    with pytest.raises(ValueError, match="chunk must be a divisor of num_directions=3, got 2"):
        forward_gradient(jnp.sum, 3, chunk=2)


def test_a_training_step_hands_it_another_key_every_time() -> None:
    loss = lambda p, batch: jnp.sum(p["w"] * batch)  # noqa: E731
    step = make_train_step(loss, sgd(1.0), gradient=forward_gradient)
    state = step.init({"w": jnp.zeros(3)}, key=0)
    moves = []
    for _ in range(2):
        before = np.asarray(state.params["w"])
        state, metrics = step(state, jnp.ones(3))
        moves.append(np.asarray(state.params["w"]) - before)
        assert np.isfinite(metrics["loss"])
    assert np.all(np.abs(moves[0] - moves[1]) > 1e-6)
    with pytest.raises(ValueError, match="forward_gradient needs a random key"):
        step(step.init({"w": jnp.zeros(3)}), jnp.ones(3))
