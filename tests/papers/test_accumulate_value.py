"""The mean loss of microbatches: a step size that depends on the loss sees that of the batch."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal


def loss(w: jax.Array, batch: tuple) -> jax.Array:
    x, y = batch
    return jnp.mean(jnp.square(x @ w - y)) / 2


def data(step: int) -> tuple:
    return normal(2 * step, 8, 3), normal(2 * step + 1, 8)


def trained(tx: Any, parts: int, steps: int = 4) -> jax.Array:
    w = jnp.zeros(3)
    state, update = tx.init(w), jax.jit(tx.update)
    for step in range(steps):
        for part in range(parts):
            micro = [a[part::parts] for a in data(step)]
            value, g = jax.value_and_grad(loss)(w, tuple(micro))
            u, state = update(g, state, w, value=value)
            w = w + u
    return w


def test_four_microbatches_are_the_batch(x64: None) -> None:
    """Equal through `accumulate_value`; `optax.MultiSteps` alone hands on the loss of the last one."""
    several = optax.MultiSteps(gk.momo(10.0), 4)
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies gradients by a boolean of float32
        compare(several)


def compare(several: optax.MultiSteps) -> None:
    want = trained(gk.momo(10.0), 1)
    for inner in (several, several.gradient_transformation()):
        # optax sums gradients in float32: four roundings per step of numbers below 4.
        assert_equal(trained(gk.accumulate_value(inner, 4), 4), want, rtol=0, atol=1e-6)
    alone = trained(several, 4)
    assert float(jnp.abs(alone - want).max()) > 1e-3


def test_weighted_accumulation_hands_on_the_loss_of_the_batch(x64: None) -> None:
    """The loss of a microbatch is the sum over its examples, as its gradient is: both are divided by their number."""
    tx = gk.accumulate_weighted(gk.momo(10.0), 2)
    w = jnp.zeros(3)
    state = tx.init(w)
    for step in range(4):
        x, y = data(step)
        for rows in (slice(0, 2), slice(2, 8)):
            n = len(y[rows])
            value, g = jax.value_and_grad(lambda w, n=n, part=(x[rows], y[rows]): n * loss(w, part))(w)
            u, state = tx.update(g, state, w, value=value, weight=n)
            w = w + u
    assert_equal(w, trained(gk.momo(10.0), 1))


@pytest.mark.slow
def test_the_microbatches_of_the_loop_hand_on_the_mean(x64: None) -> None:
    def run(parts: int) -> Any:
        step = gk.training.make_train_step(loss, gk.momo(10.0), microbatches=parts, donate=False)
        state = step.init(jnp.zeros(3))
        for t in range(3):
            state, _ = step(state, data(t))
        return state.params

    assert_equal(run(4), run(1))


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="every_k must be an integer >= 1"):
        gk.accumulate_value(optax.sgd(0.1), 0)
    tx = gk.accumulate_value(optax.sgd(0.1), 2)
    with pytest.raises(ValueError, match="accumulate_value needs the extra argument value"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
