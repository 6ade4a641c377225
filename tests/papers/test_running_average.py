"""One running average of the iterates for all (Shamir, Zhang, 2012; as with DoG)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal


def averages(tx: Any, steps: int = 7) -> tuple[list, list]:
    """The iterates after each step, and what is read out then."""
    x = normal(0, 4)
    state, path, means = tx.init(x), [], []
    for t in range(steps):
        u, state = tx.update(normal(t + 1, 4), state, x)
        x = x + u
        path.append(x)
        means.append(gk.averaged_params(state, x))
    return path, means


def test_late_iterates_count_more(x64: None) -> None:
    """c_t = (1 + gamma) / (t + gamma); with gamma = 0 the plain mean of the iterates after each step."""
    for gamma in (8.0, 3.0):
        path, means = averages(gk.polynomial_decay_average(gk.sgd(0.3), gamma=gamma))
        want = np.asarray(path[0])
        for t, (x, mean) in enumerate(zip(path, means, strict=True), 1):
            c = (1 + gamma) / (t + gamma)
            want = (1 - c) * want + c * np.asarray(x)
            assert_equal(mean, want)
    path, means = averages(gk.polynomial_decay_average(gk.sgd(0.3), gamma=0.0))
    for t, mean in enumerate(means):
        assert_equal(mean, jnp.mean(jnp.stack(path[: t + 1]), 0))


def test_all_averages_are_this_one(x64: None) -> None:
    """With shares of their own: 1 / t, 1 - d, and the weight of the newest in proximal_ewma."""
    path, plain = averages(gk.running_average(gk.sgd(0.3), lambda t: 1 / t))
    _, polyak = averages(optax.chain(gk.sgd(0.3), gk.polyak_average()))
    assert_equal(plain, polyak)
    _, running = averages(gk.running_average(gk.sgd(0.3), lambda t: 0 * t + 0.2))
    _, ema = averages(optax.chain(gk.sgd(0.3), gk.params_ema(0.8, bias_correction=False)))
    assert_equal(running, ema)
    _, debiased = averages(gk.running_average(gk.sgd(0.3), lambda t: 0.2 / (1 - 0.8**t)))
    _, corrected = averages(optax.chain(gk.sgd(0.3), gk.params_ema(0.8)))
    assert_equal(debiased, corrected)
    tx, x = optax.chain(gk.sgd(0.3), gk.proximal_ewma(0.5)), normal(0, 4)
    own = gk.running_average(gk.sgd(0.3), lambda t: 0.5 / (1 - 0.5 ** (t + 1)))
    state, state_own = tx.init(x), own.init(x)
    for t in range(4):
        g = normal(t + 1, 4)
        u, state = tx.update(g, state, x)
        _, state_own = own.update(g, state_own, x)
        x = x + u
        assert_equal(state[-1].proximal_params(x), gk.averaged_params(state_own, x))
    assert len(path) == 7


def test_the_run_is_the_run_of_the_optimizer(x64: None) -> None:
    x, g = normal(0, 4), normal(1, 4)
    for inner in (gk.adam(0.1), gk.sgd(0.1, momentum=0.9)):
        tx = gk.polynomial_decay_average(inner)
        assert_equal(tx.update(g, tx.init(x), x)[0], inner.update(g, inner.init(x), x)[0], rtol=0, atol=0)


def test_the_average_of_bfloat16_parameters_is_float32() -> None:
    """Its share of 1 / 1000 would be lost in bfloat16."""
    x = jnp.ones(2, jnp.bfloat16)
    tx = gk.running_average(optax.sgd(1.0), lambda t: jnp.where(t == 1, jnp.ones_like(t), 0 * t + 1e-3))
    state = tx.init(x)
    for g in (0.0, 1.0):
        _, state = tx.update(jnp.full(2, g, jnp.bfloat16), state, x)
    np.testing.assert_allclose(gk.find(state, "mean"), 0.999, rtol=2**-23)
    assert gk.averaged_params(state, x).dtype == jnp.bfloat16


def test_it_is_found_in_any_chain() -> None:
    x = {"a": jnp.ones(2), "b": jnp.ones(3)}
    own = gk.polynomial_decay_average(gk.dog(init_step=("distance", 0.1)))
    for tx in (
        optax.chain(gk.clip_by_global_norm(1.0), own),
        optax.masked(own, True),
        optax.partition({"one": own}, {"a": "one", "b": "one"}),
        optax.apply_if_finite(own, 3),
    ):
        tx = optax.with_extra_args_support(tx)
        u, state = tx.update(x, tx.init(x), x)
        moved = jax.tree.map(jnp.add, x, u)
        # The first average is the first iterate.
        assert_equal(gk.averaged_params(state, moved), moved, rtol=2**-23)
    with pytest.raises(ValueError, match="averaged_params: the state has no running average"):
        gk.averaged_params(gk.adam(0.1).init(x), x)


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="weight must be callable"):
        gk.running_average(gk.sgd(0.1), 0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="inner must be an optax transformation"):
        gk.polynomial_decay_average(0.1)  # pyright: ignore[reportArgumentType]
