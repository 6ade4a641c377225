"""Averages of the iterates (as in Bottou, Curtis, Nocedal, 2016)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal


def averages(link: optax.GradientTransformation, steps: int = 9) -> tuple[list, list]:
    """The iterates after every step, and the mean at that step."""
    tx, x = optax.chain(gk.adam(0.1), link), normal(0, 5)
    state, path, means = tx.init(x), [x], []
    assert_equal(gk.eval_params(state, x), x)
    for t in range(steps):
        u, state = tx.update(normal(t + 1, 5), state, x)
        x = x + u
        path.append(x)
        means.append(gk.eval_params(state, x))
    return path, means


@pytest.mark.parametrize("start", [0, 1, 4])
def test_it_is_the_arithmetic_mean(start: int, x64: None) -> None:
    path, means = averages(gk.polyak_average(start=start))
    for t, mean in enumerate(means):
        assert_equal(mean, jnp.mean(jnp.stack(path[start + 1 : t + 2]), 0) if t >= start else path[t + 1])


@pytest.mark.parametrize("debias", [True, False])
def test_running_mean(debias: bool, x64: None) -> None:
    path, means = averages(gk.params_ema(0.8, bias_correction=debias))
    e = 0 * path[0] if debias else path[0]
    for t, (x, mean) in enumerate(zip(path[1:], means, strict=True), 1):
        e = 0.8 * e + 0.2 * x
        assert_equal(mean, e / (1 - 0.8**t) if debias else e)


def test_a_constant_iterate_is_its_own_mean(x64: None) -> None:
    x = normal(0, 3)
    for link in (
        gk.polyak_average(),
        gk.params_ema(0.9),
        gk.params_ema(0.9, bias_correction=False),
        gk.params_ema(0.0),
    ):
        state = link.init(x)
        for _ in range(4):
            _, state = link.update(0 * x, state, x)
            assert_equal(gk.eval_params(state, x), x)


def test_updates_and_the_run_are_untouched(x64: None) -> None:
    x, g = normal(0, 4), normal(1, 4)
    for link in (gk.polyak_average(), gk.params_ema()):
        assert_equal(link.update(g, link.init(x), x)[0], g, rtol=0, atol=0)


def test_the_error_falls_as_one_over_root_k(x64: None) -> None:
    """SGD on a quadratic with unit noise at a constant rate: the iterate stays at a distance, the mean comes near. Over
    500 coordinates the mean square of the mean is (curvature^2 k)^-1 to a few percent."""

    def run(x: jax.Array) -> tuple:
        tx = optax.chain(gk.sgd(0.5), gk.polyak_average(start=50))

        def step(carry: tuple, noise: jax.Array) -> tuple:
            x, state = carry
            u, state = tx.update(x + noise, state, x)
            x = x + u
            return (x, state), (x, gk.eval_params(state, x))

        return jax.lax.scan(step, (x, tx.init(x)), normal(3, 1650, 500))[1]

    last, mean = jax.jit(run)(jnp.ones(500))
    for k in (100, 400, 1600):
        assert np.isclose(float(jnp.mean(jnp.square(mean[49 + k]))) * k, 1.0, rtol=0.2)
        assert np.isclose(float(jnp.mean(jnp.square(last[49 + k]))), 0.5 / 1.5, rtol=0.2)
