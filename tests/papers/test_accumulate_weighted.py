"""Delayed updates weighed by tokens (Ott et al., 2018)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal

SIZES = (3, 1, 6, 2, 4, 4)  # tokens per microbatch


def problem() -> tuple:
    """Parameters, a loss that sums over examples, the microbatches and the batches of three they make."""
    x, data = {"b": normal(0), "w": normal(1, 3)}, normal(2, sum(SIZES), 3)
    ends = np.cumsum(SIZES)[:-1].tolist()
    micro = jnp.split(data, ends)
    return x, lambda p, batch: jnp.sum(jnp.sin(batch @ p["w"] + p["b"])), micro, [micro[:3], micro[3:]]


def run(tx: Any, x: Any, loss: Callable[..., Any], batches: list, **extra: bool) -> list[Any]:
    tx = optax.with_extra_args_support(tx)
    state, out = tx.init(x), []
    for batch in batches:
        own = {"weight": len(batch)} if extra.get("weighted") else {}
        u, state = tx.update(jax.grad(loss)(x, batch), state, x, **own)
        x = optax.apply_updates(x, u)
        out.append(x)
    return out


def test_equals_one_update_on_all_tokens(x64: None) -> None:
    """Of an optimizer with memory and a schedule, that counts steps and not microbatches; nothing moves in between."""
    x, loss, micro, big = problem()
    adam = lambda: gk.adamw(lambda t: 0.1 / (1 + t.astype(float)), weight_decay=0.1)  # noqa: E731
    got = run(gk.accumulate_weighted(adam(), 3), x, loss, micro, weighted=True)
    whole = [jnp.concatenate(batch) for batch in big]
    want = run(adam(), x, lambda p, batch: loss(p, batch) / len(batch), whole)
    assert_equal(got[2], want[0])
    assert_equal(got[5], want[1])
    assert_equal(got[0], x)
    assert_equal(got[4], want[0])


def test_is_multisteps_where_weights_are_equal_and_only_there(x64: None) -> None:
    x, loss, micro, _ = problem()
    mean = lambda p, batch: loss(p, batch) / len(batch)  # noqa: E731
    for batches, same in ((micro[:3], False), ([micro[4]] * 2 + [micro[5]], True)):
        ours = run(gk.accumulate_weighted(gk.sgd(0.1), 3), x, loss, batches, weighted=True)[-1]
        with jax.numpy_dtype_promotion("standard"):
            theirs = run(optax.MultiSteps(gk.sgd(0.1), 3), x, mean, batches)[-1]
        assert np.allclose(ours["w"], theirs["w"], rtol=1e-12) == same


def test_sums_over_replicas_and_divides_once(x64: None) -> None:
    """Two replicas of three microbatches of different sizes are one batch of all their tokens."""
    x, loss, micro, _ = problem()
    tx = gk.accumulate_weighted(gk.sgd(0.1), 3, axis_name="data")
    grads = [jax.grad(loss)(x, batch) for batch in micro]
    state = jax.tree.map(lambda s: jnp.stack([s, s]), tx.init(x))
    step = jax.jit(jax.vmap(lambda g, s, n: tx.update(g, s, x, weight=n), axis_name="data"))
    for i in range(3):
        pair = jax.tree.map(lambda *g: jnp.stack(g), grads[i], grads[i + 3])
        u, state = step(pair, state, jnp.array([SIZES[i], SIZES[i + 3]]))
    want = jax.tree.map(lambda *g: -0.1 * sum(g) / sum(SIZES), *grads)
    assert_equal(jax.tree.map(lambda u: u[0], u), want)
    assert_equal(jax.tree.map(lambda u: u[1], u), want)


def test_sums_are_float32_and_batches_without_tokens_are_skipped() -> None:
    """In bfloat16 a sum of 1024 ones would stop at 256; with nothing but padding the gradient is 0."""
    x = jnp.zeros(2, jnp.bfloat16)
    tx = gk.accumulate_weighted(optax.sgd(1.0), 1024)

    def step(carry: tuple, _: None) -> tuple:
        x, state = carry
        u, state = tx.update(jnp.ones(2, jnp.bfloat16), state, x, weight=1)
        return (x + u, state), None

    (end, state), _ = jax.jit(lambda c: jax.lax.scan(step, c, None, 1024))((x, tx.init(x)))
    assert end.tolist() == [-1.0, -1.0] and state.total.dtype == jnp.float32
    tx = gk.accumulate_weighted(optax.sgd(1.0), 1)
    u, _ = tx.update(jnp.zeros(2), tx.init(x), x, weight=0)
    assert u.tolist() == [0.0, 0.0]


def test_bad_input() -> None:
    x = jnp.ones(2)
    with pytest.raises(ValueError, match="every_k must be an integer >= 1"):
        gk.accumulate_weighted(optax.sgd(1.0), 0)
    tx = gk.accumulate_weighted(optax.sgd(1.0), 2)
    with pytest.raises(ValueError, match="accumulate_weighted needs the extra argument weight"):
        tx.update(x, tx.init(x), x)
    with pytest.raises(ValueError, match=r"weight must be in \[0, inf\)"):
        tx.update(x, tx.init(x), x, weight=-1)
