"""Ano (Kegreisz, 2025)."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def reference(gradients: list, b1: float | list, b2: float, eps: float, in_sqrt: bool, corrected: bool) -> list:
    m, v, out = 0.0, 0.0, []
    for t, g in enumerate(map(np.asarray, gradients), 1):
        b = b1[t - 1] if isinstance(b1, list) else b1
        m, v = b * m + (1 - b) * g, b2 * v + (1 - b2) * np.sign(g**2 - v) * g**2
        hat = v / (1 - b2**t) if corrected else v
        out.append(np.abs(g) * np.sign(m) / (np.sqrt(hat + eps) if in_sqrt else np.sqrt(hat) + eps))
    return out


@pytest.mark.parametrize("in_sqrt", [False, True])
@pytest.mark.parametrize("corrected", [False, True])
def test_against_the_equations(in_sqrt: bool, corrected: bool, x64: None) -> None:
    g = [normal(i, 6) for i in range(8)]
    tx = gk.scale_by_ano(b1=0.8, b2=0.7, eps=1e-2, eps_in_sqrt=in_sqrt, bias_correction=corrected)
    assert_equal(updates(tx, g[0], g), reference(g, 0.8, 0.7, 1e-2, in_sqrt, corrected))


def test_growing_gradients_of_one_sign_are_rmsprop(x64: None) -> None:
    """Where m and g have the same sign, and g^2 is never below v, the update is g over the root of the mean square."""
    g, v = [(1 + t) * (1 + jnp.abs(normal(0, 5))) for t in range(5)], 0.0
    for t, (x, u) in enumerate(zip(g, updates(gk.scale_by_ano(), g[0], g), strict=True), 1):
        v = 0.99 * v + 0.01 * x**2
        assert_equal(u, x / (jnp.sqrt(v / (1 - 0.99**t)) + 1e-8))


def test_sign_of_the_momentum_and_second_moment_that_never_is_negative(x64: None) -> None:
    """At b2 = 1/2, the least, v can only just stay positive."""
    g = [normal(i, 50) * 10.0 ** normal(100 + i, 50) for i in range(30)]
    tx, m = gk.scale_by_ano(b2=0.5), 0.0
    state = tx.init(g[0])
    for x in g:
        u, state = tx.update(x, state)
        m = 0.92 * m + 0.08 * x
        assert jnp.all(jnp.sign(u) == jnp.sign(m))
        assert jnp.all(state.nu >= 0)


def test_second_moment_falls_where_gradients_are_small(x64: None) -> None:
    """By the factor b2 and by the subtracted square: Yogi only subtracts."""
    big, small = jnp.ones(3), 0.01 * jnp.ones(3)
    tx = gk.scale_by_ano(b2=0.9)
    _, state = tx.update(big, tx.init(big))
    _, state = tx.update(small, state)
    assert_equal(state.nu, (0.9 * 0.1 - 0.1 * 1e-4) * jnp.ones(3))


@pytest.mark.parametrize("schedule", ["paper", "official"])
def test_momentum_grows_with_the_logarithm(schedule: str, x64: None) -> None:
    g = [normal(i, 6) for i in range(8)]
    b1 = [1 - 1 / math.log(t + 2 if schedule == "paper" else max(2, t)) for t in range(1, 9)]
    assert b1[0] == pytest.approx(0.0898 if schedule == "paper" else -0.4427, abs=1e-4)
    got = updates(gk.anolog(0.1, schedule=schedule), g[0], g)
    assert_equal(got, [-0.1 * u for u in reference(g, b1, 0.999, 1e-8, False, True)])


def test_weight_decay_is_not_part_of_the_sign(x64: None) -> None:
    x, g = 100 * jnp.ones(3), jnp.asarray([1.0, -1.0, 0.0])
    plain, decayed = (updates(gk.ano(0.1, weight_decay=wd), x, [g])[0] for wd in (0.0, 0.5))
    assert_equal(decayed - plain, -0.1 * 0.5 * x)


@pytest.mark.parametrize("function", [gk.ano, gk.anolog])
def test_a_second_moment_that_could_be_negative_is_refused(function: object) -> None:
    with pytest.raises(ValueError, match=r"b2 must be in \[0.5, 1\)"):
        function(0.1, b2=0.4)  # pyright: ignore[reportCallIssue]
