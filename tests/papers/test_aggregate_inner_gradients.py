"""Stochastic gradient aggregation (Liu et al., 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradkit.gradients import aggregate_inner_gradients, sga
from tests.papers.replay import assert_equal, normal

pytestmark = pytest.mark.slow


def loss(x: Any, batch: jax.Array) -> jax.Array:
    return jnp.mean(jnp.sum(jnp.sin(batch * (x + 1)[None]), axis=1))


grad_fn = jax.grad(loss)
signs = optax.chain(optax.scale_by_sign(), optax.scale_by_learning_rate(0.1))
KEY = jax.random.key(0, impl="unsafe_rbg")  # compiles in a moment


def test_against_a_loop(x64: None) -> None:
    """Three minibatches (examples i, i + 3, ...), five steps of them in turn, kept in a box."""
    x, batch = normal(0, 4), normal(1, 12, 4)
    box = lambda x: jnp.clip(x, -0.6, 0.6)  # noqa: E731
    fn = aggregate_inner_gradients(grad_fn, signs, 5, 3, project=box)
    at, met = np.asarray(x), []
    for j in range(5):
        part = np.asarray(batch)[j % 3 :: 3]
        q = np.mean(part * np.cos(part * (at + 1)), axis=0)
        met.append(q)
        at = np.clip(at - 0.1 * np.sign(q), -0.6, 0.6)
    assert_equal(jax.jit(fn)(x, batch), np.mean(met, axis=0))


def test_one_step_on_one_part_is_the_gradient(x64: None) -> None:
    x, batch = normal(0, 4), normal(1, 6, 4)
    assert_equal(aggregate_inner_gradients(grad_fn, signs, 1, 1)(x, batch, KEY), grad_fn(x, batch))


def test_inner_steps_of_length_zero_give_the_gradient_of_the_batch(x64: None) -> None:
    """Exactly, as every pass has every example once, in whatever order; half a pass has half of them."""
    x, batch = normal(0, 4), normal(1, 12, 4)
    fn = jax.jit(aggregate_inner_gradients(grad_fn, optax.sgd(0.0), 2 * 6, 6))
    for seed in range(3):
        assert_equal(fn(x, batch, jax.random.fold_in(KEY, seed)), grad_fn(x, batch))
    half = jax.jit(aggregate_inner_gradients(grad_fn, optax.sgd(0.0), 3, 6))
    first, second = (half(x, batch, jax.random.fold_in(KEY, seed)) for seed in range(2))
    assert jnp.abs(first - second).max() > 1e-3


def test_a_mean_before_the_sign_is_not_a_mean_of_signs() -> None:
    """Gradients 1, 1 and -5 of three examples: their mean is negative, most of their signs are not."""
    fn = aggregate_inner_gradients(lambda x, b: jnp.mean(b) + 0 * x, optax.sgd(0.0), 3, 3)
    assert jnp.sign(fn(jnp.zeros(()), jnp.array([1.0, 1.0, -5.0]))) == -1


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_the_attack_against_a_loop(momentum: float | None, x64: None) -> None:
    """Two batches; passes are not shuffled without a key."""
    eps, delta, batches = 0.2, np.zeros(3), [np.asarray(normal(i, 4, 3)) for i in range(2)]
    attack = sga(grad_fn, eps, minibatch=2, inner_repeats=2, momentum=momentum)
    got, state, v, update = jnp.asarray(delta), attack.init(jnp.asarray(delta)), 0.0, jax.jit(attack.update)
    for batch in batches:
        got, state = update(got, state, jnp.asarray(batch))
        at, met = delta, []
        for part in (batch[::2], batch[1::2]) * 2:
            q = np.mean(part * np.cos(part * (at + 1)), axis=0)
            met.append(q)
            at = np.clip(at - 0.1 * eps * np.sign(q), -eps, eps)
        g = np.mean(met, axis=0)
        v = g if momentum is None else momentum * v + g / np.abs(g).sum()
        delta = np.clip(delta - 0.1 * eps * np.sign(v), -eps, eps)
        assert_equal(got, delta)
    assert jax.tree.structure(state) == jax.tree.structure(attack.init(got))


def test_the_attack_stays_in_its_box_and_lowers_the_loss() -> None:
    batch, delta = normal(3, 20, 5), jnp.zeros(5)
    attack = sga(grad_fn, 0.5)

    def step(carry: Any, key: jax.Array) -> Any:
        return attack.update(*carry, batch, key), loss(carry[0], batch)

    (end, _), losses = jax.jit(lambda d: jax.lax.scan(step, (d, attack.init(d)), jax.random.split(KEY, 12)))(delta)
    assert jnp.abs(end).max() <= 0.5 and losses[-1] < losses[0]
    # A zero gradient moves nothing, with momentum too.
    still = sga(lambda d, b: jnp.zeros_like(d), 0.5, minibatch=1, momentum=0.9)
    assert (still.update(end, still.init(end), batch)[0] == end).all()


def test_bad_input() -> None:
    for name, arguments in (
        ("grad_fn", (1, signs, 1, 1)),
        ("inner", (grad_fn, 0.1, 1, 1)),
        ("inner_steps", (grad_fn, signs, 0, 1)),
        ("minibatches", (grad_fn, signs, 1, 0)),
    ):
        with pytest.raises(ValueError, match=f"{name} must be"):
            aggregate_inner_gradients(*arguments)
    with pytest.raises(ValueError, match="project must be"):
        aggregate_inner_gradients(grad_fn, signs, 1, 1, project=3)
    with pytest.raises(ValueError, match="a batch of 4 does not divide"):
        aggregate_inner_gradients(grad_fn, signs, 1, 3)(jnp.ones(2), jnp.ones((4, 2)))
    good = {"eps": 0.1}
    for name, bad in (("eps", 0.0), ("minibatch", 0), ("inner_repeats", 0), ("step", -1.0), ("momentum", 1.0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            sga(grad_fn, **{**good, name: bad})
    with pytest.raises(ValueError, match="must be a multiple of minibatch=3"):
        sga(grad_fn, 0.1, minibatch=3).update(jnp.ones(2), sga(grad_fn, 0.1).init(jnp.ones(2)), jnp.ones((4, 2)))
