"""AdEMAMix (Pagliardini, Ablin, Grangier, 2024)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_no_slow_momentum_is_adamw(x64: None) -> None:
    g = [normal(i, 5) for i in range(6)]
    got = updates(gk.ademamix(0.1, alpha=0.0, weight_decay=0.1), g[0], g)
    assert_equal(got, updates(gk.adamw(0.1, weight_decay=0.1), g[0], g))


def test_first_step(x64: None) -> None:
    g = normal(0, 20)
    (u,) = updates(gk.scale_by_ademamix(b3=0.99, alpha=7.0, eps=0.0), g, [g])
    assert_equal(u, jnp.sign(g) * (1 + 7 * 0.01))


def test_without_fast_momentum_one_word_less(x64: None) -> None:
    """b1 = 0 as a number, and as a traced value, whose mean is the gradient itself."""
    g = [normal(i, 5) for i in range(4)]
    words = lambda tx: sum(x.size for x in jax.tree.leaves(jax.eval_shape(tx.init, g[0])) if x.ndim)  # noqa: E731
    assert (words(gk.scale_by_ademamix(b1=0.0)), words(gk.scale_by_ademamix())) == (2 * 5, 3 * 5)
    number = updates(gk.scale_by_ademamix(b1=0.0), g[0], g)
    assert_equal(number, jax.jit(lambda b1: updates(gk.scale_by_ademamix(b1=b1), g[0], g))(0.0))


def test_both_warm_ups_against_the_equations(x64: None) -> None:
    """float64 NumPy, t = 1, 2, ...; the half-life form of the paper, f(b) = ln(1/2) / ln(b) - 1."""
    g, lr, b1, b2, b3, alpha, T = [normal(i, 5) for i in range(8)], 0.1, 0.8, 0.95, 0.99, 6.0, 5
    x, m1, m2, v = np.asarray(g[0]), 0.0, 0.0, 0.0
    tx = gk.ademamix(lr, b1=b1, b2=b2, b3=b3, alpha=alpha, alpha_warmup=T, b3_warmup=T, weight_decay=0.1)
    f, inverse = lambda b: np.log(0.5) / np.log(b) - 1, lambda z: 0.5 ** (1 / (z + 1))
    for t, (gradient, u) in enumerate(zip(np.asarray(g), updates(tx, g[0], g), strict=True), 1):
        p = min(t / T, 1)
        b3_t = inverse((1 - p) * f(b1) + p * f(b3))
        m1, m2 = b1 * m1 + (1 - b1) * gradient, b3_t * m2 + (1 - b3_t) * gradient
        v = b2 * v + (1 - b2) * gradient**2
        d = np.sqrt(v / (1 - b2**t)) + 1e-8
        step = -lr * ((m1 / (1 - b1**t) + alpha * p * m2) / d + 0.1 * x)
        assert_equal(u, step)
        x = x + step


def test_schedules(x64: None) -> None:
    """Half-lives grow linearly in t = step + 1, from that of b1 at t = 0 to that of b3 at T, where both stay."""
    b1, b3, T = 0.9, 0.9999, 50
    step = jnp.arange(2 * T)
    p = jnp.minimum((step + 1) / T, 1)
    assert_equal(gk.schedules.ademamix_alpha_schedule(5.0, warmup_steps=T)(step), 5 * p)
    half_life = np.log(0.5) / np.log(gk.schedules.ademamix_b3_schedule(b3, b1=b1, warmup_steps=T)(step))
    low, high = (np.log(0.5) / np.log(b) for b in (b1, b3))
    # The logarithm of a decay near 1 is off by 2^-53 / (1 - b3) of itself.
    np.testing.assert_allclose(half_life, (1 - p) * low + p * high, rtol=4 * 2**-53 / (1 - b3))


def test_schedules_as_arguments_are_the_warm_ups(x64: None) -> None:
    """And in optax's AdEMAMix, whose own count starts at 0, they give the steps of the official code."""
    g, T = [normal(i, 5) for i in range(6)], 4
    alpha = gk.schedules.ademamix_alpha_schedule(5.0, warmup_steps=T)
    b3 = gk.schedules.ademamix_b3_schedule(0.99, b1=0.9, warmup_steps=T)
    warm = updates(gk.scale_by_ademamix(b3=0.99, alpha_warmup=T, b3_warmup=T), g[0], g)
    assert_equal(warm, updates(gk.scale_by_ademamix(alpha=alpha, b3=b3), g[0], g))
    with jax.numpy_dtype_promotion("standard"):  # optax promotes its counters implicitly
        theirs = updates(optax.contrib.scale_by_ademamix(alpha=alpha, b3=b3), g[0], g)
    # optax takes 1 - b^t in float32, since its counter is int32.
    assert_equal(warm, theirs, rtol=1e-5)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"b1": 0.0, "b3_warmup": 10}, r"b1 must be in \(0, 1\)"),
        ({"b1": 0.9, "b3": 0.8, "b3_warmup": 10}, "b3 must be at least b1"),
        ({"alpha_warmup": 0}, "alpha_warmup must be an integer >= 1"),
        ({"b3_warmup": -5}, "b3_warmup must be an integer >= 1"),
        ({"alpha": lambda step: 1.0, "alpha_warmup": 10}, "alpha must be a number"),
        ({"b3": lambda step: 0.9, "b3_warmup": 10}, "b3 must be a number"),
    ],
)
def test_bad_warm_ups_are_refused(bad: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gk.ademamix(0.1, **bad)
