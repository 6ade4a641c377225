"""The penalty on vanishing gradients (Pascanu, Mikolov, Bengio, 2013)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.gradients import vanishing_gradient_penalty
from tests.papers.replay import assert_equal, normal

STEPS, WIDTH = 5, 3


def test_an_orthogonal_linear_recurrence_costs_nothing(x64: None) -> None:
    e, Q = normal(0, STEPS, 2, WIDTH), jnp.linalg.qr(normal(1, WIDTH, WIDTH))[0]
    # Lengths are kept up to some ten roundings of 2^-53; their squared differences are far below.
    assert float(vanishing_gradient_penalty(e, lambda e: e @ Q.T)) < 1e-28
    # Half an isometry loses half of every length.
    assert_equal(vanishing_gradient_penalty(e, lambda e: e @ (Q.T / 2)), STEPS / 4)


def states(W: jax.Array, x0: jax.Array, inputs: jax.Array, added: jax.Array) -> tuple:
    def step(x: jax.Array, now: tuple) -> tuple:
        a = x @ W + now[0]
        x = jnp.tanh(a) + now[1]
        return x, (a, x)

    return jax.lax.scan(step, x0, (inputs, added))[1]


def test_of_a_recurrent_network(x64: None) -> None:
    """Error signals from the tail of the network, Jacobians from the network itself, step by step."""
    W, x0 = 0.7 * normal(0, WIDTH, WIDTH), normal(1, WIDTH)
    inputs, c = normal(2, STEPS, WIDTH), normal(3, STEPS, WIDTH)

    def error(added: jax.Array, W: jax.Array) -> tuple:
        a, x = states(W, x0, inputs, added)
        return jnp.sum(c * x**2), (a, x)

    def omega(W: jax.Array) -> jax.Array:
        e, (a, _) = jax.grad(error, has_aux=True)(jnp.zeros((STEPS, WIDTH)), W)
        slope = jax.lax.stop_gradient(1 - jnp.tanh(a) ** 2)
        return vanishing_gradient_penalty(e, lambda e: (e * slope) @ W.T)

    e, (a, x) = jax.grad(error, has_aux=True)(jnp.zeros((STEPS, WIDTH)), W)
    before = [x0, *x[:-1]]
    want, immediate = 0.0, np.zeros((WIDTH, WIDTH))
    for k in range(STEPS):
        J = jax.jacobian(lambda x, k=k: jnp.tanh(x @ W + inputs[k]))(before[k])  # (out, in)
        back = np.asarray(e[k] @ J)
        ratio = np.linalg.norm(back) / np.linalg.norm(e[k])
        want += (ratio - 1) ** 2
        # d|back| / dW with the states and e as they are: back = W (slope e).
        signal = np.asarray((1 - jnp.tanh(a[k]) ** 2) * e[k])
        immediate += 2 * (ratio - 1) * np.outer(back, signal) / np.linalg.norm(back) / np.linalg.norm(e[k])
    value, slope = jax.jit(jax.value_and_grad(omega))(W)
    assert_equal(value, want, rtol=1e-11)
    assert_equal(slope, immediate, rtol=1e-10)


def test_the_mean_over_sequences_and_steps_without_signal(x64: None) -> None:
    e, W = normal(0, STEPS, 4, WIDTH), normal(1, WIDTH, WIDTH)
    back = lambda e: e @ W.T  # noqa: E731
    alone = jax.vmap(lambda e: vanishing_gradient_penalty(e, back), 1)(e)
    assert_equal(vanishing_gradient_penalty(e, back), jnp.mean(alone))
    silent = e.at[2].set(0.0)
    others = jnp.concatenate([e[:2], e[3:]])
    assert_equal(vanishing_gradient_penalty(silent, back), vanishing_gradient_penalty(others, back))
    g = jax.grad(lambda W: vanishing_gradient_penalty(silent, lambda e: e @ W.T))(jnp.zeros((WIDTH, WIDTH)))
    assert not np.any(g)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="recurrent_vjp must be callable"):
        vanishing_gradient_penalty(jnp.ones((2, 3)), 1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="hidden_cotangents must be floating point of shape"):
        vanishing_gradient_penalty(jnp.ones(3), lambda e: e)
    with pytest.raises(ValueError, match=r"recurrent_vjp must return the shape \(2, 3\), got \(2,\)"):
        vanishing_gradient_penalty(jnp.ones((2, 3)), lambda e: e[:, 0])
