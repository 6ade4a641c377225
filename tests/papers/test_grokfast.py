"""Grokfast (Lee et al., 2024)."""

import jax.numpy as jnp
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_no_weight_is_the_identity(x64: None) -> None:
    gradients = [normal(i, 4) for i in range(3)]
    assert_equal(updates(gk.grokfast_ema(lamb=0.0), gradients[0], gradients), gradients)


def test_constant_gradient_is_amplified(x64: None) -> None:
    g = normal(0, 4)
    assert_equal(updates(gk.grokfast_ema(0.9, lamb=5.0), g, [g] * 4), [6 * g] * 4)


def test_mean_starts_at_the_first_gradient(x64: None) -> None:
    a, b = normal(0, 4), normal(1, 4)
    assert_equal(updates(gk.grokfast_ema(0.9, lamb=2.0), a, [a, b])[1], b + 2 * (0.9 * a + 0.1 * b))


def test_slow_part_gains_and_fast_part_does_not(x64: None) -> None:
    """A constant plus an alternating gradient: the constant comes out 1 + lamb times as long, the alternating part at
    most (1 + lamb (1 - alpha)/(1 + alpha)) times."""
    slow, fast = normal(0, 4), normal(1, 4)
    out = updates(gk.grokfast_ema(0.98, lamb=2.0), slow, [slow + (-1) ** t * fast for t in range(1200)])
    mean, swing = (out[-1] + out[-2]) / 2, (out[-2] - out[-1]) / 2
    # what is left of the first gradient: 0.98^1200 = 3e-11
    assert_equal(mean, 3 * slow, rtol=1e-8, atol=1e-8)
    assert_equal(swing, (1 + 2 * 0.02 / 1.98) * fast, rtol=1e-8, atol=1e-8)


def test_window_of_one_multiplies(x64: None) -> None:
    gradients = [normal(i, 4) for i in range(3)]
    for kind in ("mean", "sum"):
        assert_equal(
            updates(gk.grokfast_ma(1, lamb=3.0, filter_type=kind), gradients[0], gradients), [4 * g for g in gradients]
        )


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("kind", ["mean", "sum"])
def test_window_holds_the_last_gradients(warmup: bool, kind: str, x64: None) -> None:
    """The official code keeps a queue; here a ring, over two turns of it."""
    gradients, size = [normal(i, 4) for i in range(8)], 3
    got = updates(gk.grokfast_ma(size, lamb=2.0, filter_type=kind, warmup=warmup), gradients[0], gradients)
    for t, u in enumerate(got, 1):
        last = jnp.stack(gradients[max(0, t - size) : t])
        slow = last.mean(0) if kind == "mean" else last.sum(0)
        assert_equal(u, gradients[t - 1] + (2 * slow if t >= size or not warmup else 0))


def test_window_of_constant_gradients_amplifies_and_no_weight_does_not(x64: None) -> None:
    g = normal(0, 4)
    assert_equal(updates(gk.grokfast_ma(3, lamb=5.0, warmup=False), g, [g] * 5), [6 * g] * 5)
    assert_equal(updates(gk.grokfast_ma(3, lamb=0.0), g, [g] * 5), [g] * 5)


def test_window_in_bfloat16_is_half_the_memory() -> None:
    """Each gradient in it is rounded once, by at most 2^-8 of itself; the newest too."""
    gradients = [normal(i, 4).astype(jnp.float32) for i in range(4)]
    full, half = (gk.grokfast_ma(4, lamb=1.0, mu_dtype=dtype) for dtype in (None, jnp.bfloat16))
    assert half.init(gradients[0]).window.dtype == jnp.bfloat16
    a, b = (updates(tx, gradients[0], gradients)[-1] for tx in (full, half))
    bound = sum(jnp.abs(g) for g in gradients) / 4 * 2**-8
    assert jnp.all(jnp.abs(a - b) <= bound + 4 * jnp.finfo(jnp.float32).eps * jnp.abs(a))


def test_bad_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="window_size must be an integer >= 1"):
        gk.grokfast_ma(0)
    with pytest.raises(ValueError, match="filter_type must be one of 'mean', 'sum'"):
        gk.grokfast_ma(filter_type="median")
