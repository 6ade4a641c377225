"""MoMo and MoMo-Adam (Schaipp et al., 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal


def run(tx: Any, x: Any, gradients: Any, values: Any) -> list[Any]:
    state, out = tx.init(x), [x]
    for g, value in zip(gradients, values, strict=True):
        u, state = tx.update(g, state, x, value=value)
        x = optax.apply_updates(x, u)
        out.append(x)
    return out


def by_hand(
    x: np.ndarray, grads: list, values: list, alpha: float, b1: float, lam: float, *, start_at_zero: bool = False
) -> list[np.ndarray]:
    """The nine lines of the method in NumPy, with one leaf and the bound 0."""
    out, a = [x], 1 + alpha * lam
    d, mean, gamma = np.zeros_like(x), 0.0, 0.0
    for t, (g, f) in enumerate(zip(grads, values, strict=True), 1):
        new = g, f, g @ x
        if t == 1 and not start_at_zero:
            d, mean, gamma = new
        else:
            d, mean, gamma = (b1 * m + (1 - b1) * v for m, v in zip((d, mean, gamma), new, strict=True))
        rho = 1 - b1**t if start_at_zero else 1
        tau = min(alpha / rho, max(a * (mean - gamma) + d @ x, 0) / (d @ d))
        x = (x - tau * d) / a
        out.append(x)
    return out


@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("lam", [0.0, 0.05])
def test_the_equations_with_and_without_decay(lam: float, bias_correction: bool, x64: None) -> None:
    """The decay divides the whole step: left undivided, as optax's has it, moves differ by alpha lambda / a, 4.8 %."""
    x, grads = normal(0, 6), [normal(t, 6) for t in range(1, 9)]
    values = [4.0 - 0.3 * t for t in range(8)]
    tx = gk.momo(1.0, weight_decay=lam, bias_correction=bias_correction)
    want = by_hand(np.asarray(x), [*map(np.asarray, grads)], values, 1.0, 0.9, lam, start_at_zero=bias_correction)
    got = run(tx, x, grads, values)
    assert_equal(got, want)
    if lam == 0 and not bias_correction:
        assert_equal(got, run(optax.contrib.momo(1.0), x, grads, values))


def test_decay_divides_the_step_of_the_gradient_too(x64: None) -> None:
    """(x - tau g) / a, where `optax.contrib.momo` has x / a - tau g: 4.8 % more of the gradient's step."""
    x, g, value, lam = normal(0, 6), normal(1, 6), 0.5, 0.05
    _, ours = run(gk.momo(weight_decay=lam), x, [g], [value])
    _, theirs = run(optax.contrib.momo(1.0, weight_decay=lam), x, [g], [value])
    a = 1 + lam
    tau = a * value + lam * 0 - (a - 1) * float(g @ x)
    tau = max(tau, 0.0) / float(g @ g)
    assert 0 < tau < 1
    assert_equal(ours, (x - tau * g) / a)
    assert_equal(theirs - ours, -tau * g * (1 - 1 / a), rtol=1e-9)


def test_the_first_steps_on_a_parabola(x64: None) -> None:
    """f = |x|^2 from (1, 2, 3). The first step goes half of the way; in the second d = 1.9 x_1, the model is at 0.35,
    and tau = 0.35 / |d|^2. (optax's example puts the updates in place of the parameters, and prints 0.)"""
    tx, x = gk.momo(), jnp.array([1.0, 2.0, 3.0])
    state, losses = tx.init(x), []
    for _ in range(3):
        losses.append(float(x @ x))
        u, state = tx.update(2 * x, state, x, value=x @ x)
        x = x + u
    # Roundings of numbers near 14.
    left = 0.5 - 1.9 * 0.35 / (1.9**2 * 14)
    np.testing.assert_allclose(losses, [14.0, 3.5, 14 * left**2], atol=14 * 2**-48)


def test_without_memory_it_is_polyaks_step(x64: None) -> None:
    """b1 = 0: tau = min(alpha, (f - lb) / |g|^2), as in `optax.polyak_sgd`'s sps+."""
    x, grads, values = normal(0, 4), [normal(t, 4) for t in range(1, 6)], [0.2, 3.0, 0.5, 0.05, 9.0]
    ours = run(gk.momo(0.4, b1=0.0, lower_bound=0.1), x, grads, values)
    theirs = optax.polyak_sgd(max_learning_rate=0.4, f_min=0.1, variant="sps+")
    assert_equal(ours, run(theirs, x, grads, values))


@pytest.mark.parametrize("method", [gk.momo, gk.momo_adam])
def test_a_loss_below_the_bound_makes_no_step(method: Any, x64: None) -> None:
    """Never an ascent; and gradients of zero make none either, nor a NaN."""
    x, grads = normal(0, 4), [normal(1, 4), jnp.zeros(4)]
    assert_equal(run(method(lower_bound=5.0, b1=0.0), x, grads, [1.0, 2.0]), [x, x, x], rtol=0, atol=0)
    assert_equal(run(method(b1=0.0), x, [jnp.zeros(4)] * 2, [1.0, 2.0]), [x, x, x], rtol=0, atol=0)


def test_decay_of_momo_adam_is_the_divided_or_the_plain_one(x64: None) -> None:
    x, g, lam, alpha = normal(0, 5), normal(1, 5), 0.1, 0.5
    for proximal in (True, False):
        tx = gk.momo_adam(alpha, weight_decay=lam, proximal_decay=proximal, eps=0.0)
        u, state = tx.update(g, tx.init(x), x, value=100.0)
        # The cap alpha / rho, times d = rho g, over |g|.
        step = alpha * jnp.sign(g)
        a = 1 + alpha * lam
        assert_equal(x + u, (x - step) / a if proximal else (1 - alpha * lam) * x - step)
    assert_equal(gk.diagnostics.metrics(state)["momo_step_size"], alpha / 0.1, rtol=2**-23)


def test_the_numbers_of_bfloat16_parameters_are_float32() -> None:
    """A running mean of losses in bfloat16 would stop moving: 1000 and 1001 are the same number there."""
    x = jnp.ones(3, jnp.bfloat16)
    tx = gk.momo()
    state = tx.init(x)
    for value in (1000.0, 1010.0):
        _, state = tx.update(x, state, x, value=jnp.asarray(value))
    own = gk.find(state, "momo/loss")
    assert own.dtype == jnp.float32
    np.testing.assert_allclose(own, 1001.0, rtol=2**-22)


def test_the_adaptive_bound_rises_towards_the_least_loss(x64: None) -> None:
    """f = 3 + |x|^2 / 2 with noise in the gradient: the bound ends between 0 and the least loss, near it."""
    tx, x = gk.momo(0.2, adapt_lower_bound=True), normal(0, 8)
    state = tx.init(x)
    update = jax.jit(tx.update)
    for t in range(60):
        u, state = update(x + 0.1 * normal(t + 1, 8), state, x, value=3 + x @ x / 2)
        x = x + u
    assert 2.0 < float(gk.find(state, "momo/bound")) <= 3.1


def test_what_is_missing_is_named() -> None:
    tx, x = gk.momo(), jnp.ones(2)
    with pytest.raises(ValueError, match="momo needs the extra argument value"):
        tx.update(x, tx.init(x), x)
    with pytest.raises(ValueError, match=r"value must be a scalar.*shape \(2,\)"):
        tx.update(x, tx.init(x), x, value=x)
    with pytest.raises(ValueError, match="needs params"):
        tx.update(x, tx.init(x), value=1.0)
    with pytest.raises(ValueError, match="lower_bound must be"):
        gk.momo(lower_bound=jnp.inf)
