"""Generalized primal averaging (Defazio et al., 2025)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.by_numpy import by_numpy
from tests.papers.replay import assert_equal, descend, normal, updates

CENTRE = np.random.default_rng(7).standard_normal(5)


def field(x: Any) -> Any:
    return x - CENTRE + 0.3 * x**3


def test_with_an_average_of_one_step_it_is_the_base(x64: None) -> None:
    x = normal(0, 5)
    assert_equal(descend(gk.gpa(gk.adam(0.1), mu_x=0.0), x, field, 8), descend(gk.adam(0.1), x, field, 8))


def test_with_gradients_at_the_average_it_is_heavy_ball(x64: None) -> None:
    x, mu = normal(0, 5), 0.8
    got = descend(gk.gpa(optax.sgd(0.1), mu_y=1.0, mu_x=mu), x, field, 10)
    assert_equal(got, descend(gk.sgd(0.1 * (1 - mu), momentum=mu), x, field, 10))


def test_with_equal_coefficients_it_is_nesterovs_method(x64: None) -> None:
    """And so DiLoCo of one worker with one inner step, whose outer rate is 1 - mu."""
    x, mu = normal(0, 5), 0.8
    got = descend(gk.gpa(optax.sgd(0.1), mu_y=mu, mu_x=mu), x, field, 10)
    assert_equal(got, descend(gk.sgd(0.1 * (1 - mu), momentum=mu, nesterov=True), x, field, 10))


def test_with_the_weights_of_schedule_free_it_is_that(x64: None) -> None:
    x = normal(0, 5)
    own = {"weight_decay": 0.2, "warmup_steps": 3}
    got = gk.gpa_adamw(0.1, b1=0.0, mu_y=0.9, averaging="schedule_free", decay_at="y", **own)
    assert_equal(descend(got, x, field, 8), descend(gk.schedule_free_adamw(0.1, b1=0.9, **own), x, field, 8))


@pytest.mark.parametrize("decay_at", ["z", "y"])
def test_the_three_sequences_in_numpy_with_decay(decay_at: str, x64: None) -> None:
    """The official code breaks x = (y - (1 - mu_y) z) / mu_y where there is decay."""
    y, mu_y, mu_x, wd, rate, b1, b2 = np.asarray(normal(0, 5)), 0.7, 0.8, 0.5, 0.1, 0.8, 0.9
    tx = gk.gpa_adamw(rate, b1=b1, b2=b2, eps=1e-3, weight_decay=wd, mu_y=mu_y, mu_x=mu_x, decay_at=decay_at)
    state, update, path = tx.init(jnp.asarray(y)), by_numpy(tx.update), jnp.asarray(y)
    x = z = y
    m = v = np.zeros(5)
    for t in range(1, 9):
        u, state = update(jnp.asarray(field(np.asarray(path))), state, path)
        path = path + u
        g = field(y)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        d = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + 1e-3) + wd * (z if decay_at == "z" else y)
        z = z - rate * d
        x = mu_x * x + (1 - mu_x) * z
        y = mu_y * x + (1 - mu_y) * z
        assert_equal(path, y)
        assert_equal(gk.eval_params(state, path), x, rtol=1e-11)


def test_the_average_is_the_weighted_mean_of_the_iterates(x64: None) -> None:
    """x_T is the sum of c mu_x^(T - t) z_t, plus mu_x^T times the start."""
    x, grads, mu_x = normal(0, 4), [normal(t, 4) for t in range(1, 8)], 0.6
    tx = gk.gpa(optax.sgd(0.2), mu_y=0.3, mu_x=mu_x)
    state, path = tx.init(x), x
    for g in grads:
        u, state = tx.update(g, state, path)
        path = path + u
    z = np.asarray(x) - 0.2 * np.cumsum(np.stack([np.asarray(g) for g in grads]), axis=0)
    T = len(grads)
    weights = (1 - mu_x) * mu_x ** np.arange(T - 1, -1, -1)
    assert_equal(gk.eval_params(state, path), weights @ z + mu_x**T * np.asarray(x))


def test_with_mu_y_zero_gradients_are_at_the_iterate_and_the_state_has_the_average(x64: None) -> None:
    x, grads = normal(0, 4), [normal(t, 4) for t in range(1, 6)]
    assert_equal(updates(gk.gpa(gk.adam(0.1), mu_y=0.0, mu_x=0.5), x, grads), updates(gk.adam(0.1), x, grads))


def test_the_length_of_the_average_is_that_of_diloco(x64: None) -> None:
    for steps in (1, 8, 32):
        np.testing.assert_allclose(gk.gpa_mu_x(steps, 0.8) ** steps, 0.8, rtol=1e-14)


def test_arguments_of_the_other_average_are_refused() -> None:
    with pytest.raises(ValueError, match="mu_x must be left out"):
        gk.gpa_adamw(0.1, averaging="schedule_free", mu_x=0.9)
    for name in ("weight_power", "weight_lr_power"):
        with pytest.raises(ValueError, match=f"{name} must be left out"):
            gk.gpa_adamw(0.1, **{name: 1.0})  # pyrefly: ignore[bad-argument-type]
