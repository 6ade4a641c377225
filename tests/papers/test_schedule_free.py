"""Schedule-free learning (Defazio et al., 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers import convex
from tests.papers.replay import assert_equal, descend, normal

ALL = [gk.schedule_free_sgd, gk.schedule_free_adamw, gk.schedule_free_radam]


def run(tx: Any, x: Any, steps: int) -> tuple[list, list]:
    """The parameters after every step, and the average at that step."""
    state, ys, xs = tx.init(x), [], []
    update = jax.jit(tx.update)
    for t in range(steps):
        u, state = update(normal(t + 1, *x.shape), state, x)
        x = x + u
        ys.append(x)
        xs.append(gk.schedule_free_eval_params(state, x))
    return ys, xs


def test_the_average_is_the_mean_of_the_base_iterates(x64: None) -> None:
    """Without warm-up: x_{T+1} = (z_2 + ... + z_{T+1}) / T."""
    x = normal(0, 4)
    _, xs = run(gk.schedule_free_sgd(0.3), x, 6)
    z = np.asarray(x) - 0.3 * np.cumsum([np.asarray(normal(t + 1, 4)) for t in range(6)], 0)
    for t, got in enumerate(xs):
        assert_equal(got, z[: t + 1].mean(0))


def test_the_warm_up_scales_steps_and_weights_alike(x64: None) -> None:
    """With 4 steps of warm-up rates are 1/4, 2/4, 3/4, 1, 1, and the weights the squares of the same numbers.
    `optax.contrib.schedule_free` does not move in the first step, and weighs by the rate of the next."""
    x, rates = normal(0, 4), np.array([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    _, xs = run(gk.schedule_free_sgd(1.0, warmup_steps=4), x, 6)
    steps = np.array([np.asarray(normal(t + 1, 4)) for t in range(6)])
    z = np.asarray(x) - np.cumsum(rates[:, None] * steps, 0)
    for t, got in enumerate(xs):
        w = rates[: t + 1] ** 2
        assert_equal(got, (w[:, None] * z[: t + 1]).sum(0) / w.sum())
    theirs = optax.contrib.schedule_free_sgd(1.0, warmup_steps=4)
    assert float(jnp.abs(theirs.update(normal(1, 4), theirs.init(x), x)[0]).max()) == 0


def test_weights_may_grow_with_the_step(x64: None) -> None:
    x = normal(0, 4)
    _, xs = run(gk.schedule_free_sgd(0.3, weight_power=2.0, weight_lr_power=0.0), x, 5)
    z = np.asarray(x) - 0.3 * np.cumsum([np.asarray(normal(t + 1, 4)) for t in range(5)], 0)
    w = np.arange(1.0, 6.0) ** 2
    assert_equal(xs[-1], (w[:, None] * z).sum(0) / w.sum())


@pytest.mark.parametrize("method", ALL, ids=lambda f: f.__name__)
def test_with_b1_zero_the_iterate_is_averaged(method: Any, x64: None) -> None:
    """Polyak's average of the base: the parameters do not know b1, nor is anything divided by it."""
    x = normal(0, 4)
    ys, xs = run(method(0.1, b1=0.0, b2=0.9) if method is not ALL[0] else method(0.1, b1=0.0), x, 8)
    assert all(np.isfinite(np.asarray(v)).all() for v in (*ys, *xs))
    if method is gk.schedule_free_sgd:
        assert_equal(xs[-1], np.mean(ys, 0))
    assert float(jnp.abs(xs[-1] - ys[-1]).max()) > 0


def test_the_wrapper_around_its_base_is_the_method(x64: None) -> None:
    x = normal(0, 4)
    inner = optax.chain(gk.add_decayed_weights(0.1), gk.sgd(0.3))
    assert_equal(run(gk.schedule_free(inner, 0.3), x, 5), run(gk.schedule_free_sgd(0.3, weight_decay=0.1), x, 5))
    theirs = optax.contrib.schedule_free(optax.sgd(0.3), 0.3, b1=0.9)
    with jax.numpy_dtype_promotion("standard"):
        ys = descend(theirs, x, lambda x: jnp.sin(x), 5)
    assert_equal(descend(gk.schedule_free_sgd(0.3), x, lambda x: jnp.sin(x), 5), ys)


def test_the_shares_of_bfloat16_parameters_keep_falling() -> None:
    """Summed in bfloat16, 256 ones and all that follow make 256: no share would fall below 1 / 256."""
    x = jnp.ones(1, jnp.bfloat16)
    tx = gk.schedule_free_sgd(1.0)
    state = tx.init(x)
    update = jax.jit(tx.update)
    for _ in range(400):
        _, state = update(0 * x, state, x)
    total = gk.find(state, "shares")[0]
    assert total.dtype == jnp.float32
    assert float(total) == 400


def test_the_average_is_found_in_the_state_of_any_chain() -> None:
    """`optax.contrib.schedule_free_eval_params` fails on the state of a chain."""
    x = {"a": jnp.ones(2), "b": jnp.ones(3)}
    own = gk.schedule_free_adamw(0.1)
    alone = own.update(x, own.init(x), x)
    want = gk.schedule_free_eval_params(alone[1], jax.tree.map(jnp.add, x, alone[0]))
    for tx in (
        optax.chain(optax.clip(10.0), own),
        optax.masked(own, True),
        optax.partition({"one": own}, {"a": "one", "b": "one"}),
        optax.apply_if_finite(own, 3),
        gk.inject_hyperparams(gk.schedule_free_adamw)(learning_rate=0.1),
    ):
        u, state = tx.update(x, tx.init(x), x)
        y = jax.tree.map(jnp.add, x, u)
        assert_equal(gk.schedule_free_eval_params(state, y), want, rtol=2**-21)
        assert_equal(gk.eval_params(state, y), want, rtol=2**-21)
    with pytest.raises(ValueError, match="schedule_free_eval_params: the state has no schedule-free method"):
        gk.schedule_free_eval_params(gk.adam(0.1).init(x), x)


def test_the_rectified_learning_rate_is_zero_at_first(x64: None) -> None:
    """With b2 = 0.9, l = 19 and l_t exceeds 4 from the 5th step on; until then nothing moves, or SGD does."""
    x = normal(0, 4)
    t = np.arange(1, 9)
    l_t = 19 - 2 * t * 0.9**t / (1 - 0.9**t)
    ys, _ = run(gk.schedule_free_radam(0.1, b2=0.9), x, 8)
    moved = [float(jnp.abs(y - before).max()) > 0 for y, before in zip(ys, [x, *ys], strict=False)]
    assert moved == [bool(v) for v in l_t > 4]
    ys, _ = run(gk.schedule_free_radam(0.1, b2=0.9, silent_sgd_phase=False), x, 1)
    assert_equal(ys[0], x - 0.1 * normal(1, 4))


def test_the_bias_correction_of_the_paper_scales_the_learning_rate(x64: None) -> None:
    """gamma_t = rate sqrt(1 - b2^t) with v as it is: the first step is the same, the weights are not."""
    x = normal(0, 4)
    ours, paper = (run(gk.schedule_free_adamw(0.1, b2=0.9, eps=0.0, bias_correction=kind), x, 2)
                   for kind in ("second_moment", "learning_rate"))  # fmt: skip
    assert_equal(ours[0][0], paper[0][0])
    assert float(jnp.abs(ours[1][1] - paper[1][1]).max()) > 1e-3


def test_its_gap_on_a_lipschitz_function_is_that_of_the_theorem(x64: None) -> None:
    """|x - a|_1 with rate D / (G sqrt(T)): f(x_T) - f* <= D G / sqrt(T), at every T a run of its own."""
    a = normal(0, 6)
    D, G = float(jnp.linalg.norm(a)), float(np.sqrt(6))
    for T in (16, 64):
        tx = gk.schedule_free_sgd(D / (G * np.sqrt(T)))
        x = jnp.zeros(6)
        state = tx.init(x)
        update = jax.jit(tx.update)
        for _ in range(T):
            u, state = update(jnp.sign(x - a), state, x)
            x = x + u
        assert float(jnp.abs(gk.eval_params(state, x) - a).sum()) <= D * G / np.sqrt(T)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logistic", "hinge", "absolute", "squares"])
def test_without_a_schedule_it_reaches_what_tuned_sgd_reaches(name: str, x64: None) -> None:
    """To one percent: the best of the rates, without a schedule or a horizon, beside SGD with the best of them."""
    tuned = convex.tuned(name)
    free = convex.reached(name, lambda rate: gk.schedule_free_sgd(rate), convex.RATES)
    assert free.min() <= 1.01 * tuned.min(), (free, tuned)
