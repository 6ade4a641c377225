"""Implicit gradient transport (Arnold et al., 2019)."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal


def run(tx: optax.GradientTransformationExtraArgs, gradients: list, x: Any) -> list:
    """(user's parameters, true parameters, mean) after every step, where gradients are functions of a point."""
    y: Any = x
    state, out = tx.init(x), []
    for gradient in gradients:
        u, state = tx.update(gradient(y), state, y)
        y = y + u
        out.append((y, gk.eval_params(state, y), state.mean))
    return out


@pytest.mark.parametrize("inner", [gk.sgd(0.05), gk.sgd(0.05, momentum=0.9), gk.adam(0.1)])
def test_with_one_hessian_the_mean_is_that_of_all_gradients_here(inner: object, x64: None) -> None:
    """Losses |x - c_t|_A^2 / 2: after t steps the mean is A (x_t - mean of c), at the TRUE parameters before step t."""
    a, x = jnp.linspace(0.5, 2.0, 6), normal(0, 6)
    centres = [normal(10 + t, 6) for t in range(8)]
    steps = run(gk.implicit_gradient_transport(inner), [lambda y, c=c: a * (y - c) for c in centres], x)
    true = [x, *(x for _, x, _ in steps)]
    for t, (_, _, mean) in enumerate(steps):
        # The shift of t steps times the mean's 1 / t cancels: errors stay at a few roundings of |x| + |c|.
        assert_equal(mean, a * (true[t] - jnp.mean(jnp.stack(centres[: t + 1]), 0)), rtol=1e-11, atol=1e-12)


def test_the_shift_is_t_steps_long(x64: None) -> None:
    steps = run(gk.implicit_gradient_transport(gk.sgd(0.1)), [lambda y: jnp.ones_like(y)] * 6, jnp.zeros(2))
    for t, (y, x, _) in enumerate(steps, 1):
        assert_equal(x, -0.1 * t * jnp.ones(2))
        assert_equal(y - x, -0.1 * t * jnp.ones(2))


@pytest.mark.parametrize("delta", [0.5, 1.0, 3.0])
def test_equations_of_the_paper(delta: float, x64: None) -> None:
    """Heavy ball on the mean, in NumPy."""
    x, m, v, y = np.asarray(normal(0, 5)), 0.0, 0.0, np.asarray(normal(0, 5))
    gradients = [lambda y, t=t: y**3 - t * y + 0.3 for t in range(6)]
    got = run(gk.implicit_gradient_transport(gk.sgd(0.05, momentum=0.9), delta=delta), gradients, jnp.asarray(x))
    for k, (gradient, (there, true, mean)) in enumerate(zip(gradients, got, strict=True)):
        m = k / (k + delta) * m + delta / (k + delta) * gradient(y)
        v = 0.9 * v + m
        x = x - 0.05 * v
        y = x - (k + 1) / delta * 0.05 * v
        assert_equal((there, true, mean), (y, x, m), rtol=1e-10, atol=1e-12)


def weights(**kwargs: float) -> np.ndarray:
    """The share of each of 60 gradients in the last mean, by linearity."""
    tx = gk.implicit_gradient_transport(optax.identity(), **kwargs)
    state, shares = tx.init(jnp.zeros(60)), jnp.eye(60)
    for g in shares:
        _, state = tx.update(g, state, jnp.zeros(60))
    return np.asarray(state.mean)


def test_the_tail(x64: None) -> None:
    """Weights sum to one; the effective number of gradients, 1 / sum of squares, is near c t, of recent ones."""
    for c in (0.3, 0.7):
        w = weights(tail_fraction=c)
        assert math.isclose(w.sum(), 1.0, rel_tol=1e-12) and (w >= 0).all()
        assert 0.9 * c * 60 < 1 / np.sum(w**2) < 1.1 * c * 60 + 1
        assert w[-15:].sum() > weights()[-15:].sum()
    assert_equal(weights(), np.full(60, 1 / 60))


def test_noise_that_defeats_sgd_averages_out(x64: None) -> None:
    """At one constant rate the distance of IGT from the optimum falls as 1 / sqrt(t); that of SGD does not fall."""
    a, start = jnp.linspace(0.2, 1.0, 10), 3 * jnp.ones(10)
    noisy = [lambda y, t=t: a * y + normal(t, 10) for t in range(800)]
    _, igt, _ = run(gk.implicit_gradient_transport(gk.sgd(0.5)), noisy, start)[-1]
    x = start
    for gradient in noisy:
        x = x - 0.5 * gradient(x)
    # Mean noise 800^(-1/2) over curvature at least 0.2: at most 0.18 per coordinate; that of SGD is (0.5/(2 a))^(1/2).
    assert jnp.sqrt(jnp.mean(igt**2)) < 0.2 < 0.5 < jnp.sqrt(jnp.mean(x**2))


def test_bad_input() -> None:
    for bad in ({"delta": 0.0}, {"tail_fraction": 0.0}, {"tail_fraction": 1.5}, {"delta": 2.0, "tail_fraction": 0.5}):
        with pytest.raises(ValueError, match="must be"):
            gk.implicit_gradient_transport(gk.sgd(0.1), **bad)
