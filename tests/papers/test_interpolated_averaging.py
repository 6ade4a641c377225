"""Gradients between an iterate and the average of its iterates: the three sequences, in every corner of b1."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal


def sequences(b1: float, weight: Any, rate: float, steps: int) -> list[tuple]:
    """(y, x) after every step, in NumPy, on the gradients of a quadratic at y."""
    A = np.linspace(0.2, 2.0, 5)
    x = y = z = np.asarray(normal(0, 5))
    out = []
    for t in range(1, steps + 1):
        z = z - rate * A * y
        c = weight(t)
        x = (1 - c) * x + c * z
        y = b1 * x + (1 - b1) * z
        out.append((y, x))
    return out


@pytest.mark.parametrize("b1", [0.0, 0.5, 0.9, 1.0])
def test_the_three_sequences(b1: float, x64: None) -> None:
    """Only one word is kept; with b1 = 0, where x does not follow from y and z, x is the one."""
    A = jnp.linspace(0.2, 2.0, 5)
    tx, y = gk.interpolated_averaging(optax.sgd(0.3), lambda t: 1 / (t + 1), b1=b1), normal(0, 5)
    state = tx.init(y)
    update = jax.jit(tx.update)
    for want_y, want_x in sequences(b1, lambda t: 1 / (t + 1), 0.3, 12):
        u, state = update(A * y, state, y)
        y = y + u
        assert_equal(y, want_y)
        assert_equal(gk.eval_params(state, y), want_x)
    assert sum(x.size for x in jax.tree.leaves(state)) <= 5 + 3


def test_with_b1_zero_it_is_the_running_average(x64: None) -> None:
    share = lambda t: 2 / (t + 1)  # noqa: E731
    A, y = jnp.linspace(0.2, 2.0, 5), normal(0, 5)
    one, other = gk.interpolated_averaging(gk.sgd(0.3), share, b1=0.0), gk.running_average(gk.sgd(0.3), share)
    states = [tx.init(y) for tx in (one, other)]
    for _ in range(5):
        (u, states[0]), (v, states[1]) = (tx.update(A * y, s, y) for tx, s in zip((one, other), states, strict=True))
        assert_equal(u, v, rtol=0, atol=0)
        y = y + u
        assert_equal(gk.eval_params(states[0], y), gk.eval_params(states[1], y))


def test_the_inner_sequence_may_be_kept_in_a_narrow_dtype(x64: None) -> None:
    """The three sequences then belong to the rounded z: y = b1 x + (1 - b1) z exactly, with x a mean of them."""
    tx, y = gk.schedule_free(optax.sgd(0.3), 0.3, state_dtype=jnp.bfloat16), normal(0, 5)
    state, zs = tx.init(y), []
    start = y
    for t in range(6):
        u, state = tx.update(normal(t + 1, 5), state, y)
        y = y + u
        z = gk.find(state, "z")
        assert z.dtype == jnp.bfloat16
        zs.append(np.asarray(z, np.float64))
    # x_1 is the unrounded start, and c_1 = 1: the mean is of z_2, ..., z_7; y starts beside the rounded z_1 by 2^-9.
    np.testing.assert_allclose(gk.eval_params(state, y), np.mean(zs, 0), atol=2**-8 * float(jnp.abs(start).max()))
    np.testing.assert_allclose(y, 0.9 * np.mean(zs, 0) + 0.1 * zs[-1], atol=2**-8 * float(jnp.abs(start).max()))


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match=r"b1 must be in \[0, 1\]"):
        gk.interpolated_averaging(optax.sgd(0.1), lambda t: 1 / t, b1=1.5)
    with pytest.raises(ValueError, match="weight must be callable"):
        gk.interpolated_averaging(optax.sgd(0.1), 0.5)  # pyright: ignore[reportArgumentType]
    tx = gk.interpolated_averaging(optax.sgd(0.1), lambda t: 1 / t)
    with pytest.raises(ValueError, match="needs params"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
