"""INNA (Castera et al., 2019) and INNAprop (Bolte et al., 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, descend, normal, updates


def reference(x: Any, g: list, rates: Any, alpha: float, beta: float, decay: float, sigma: float | None) -> list:
    """With psi itself, as the papers write it, and the division by beta - lr of the official code."""
    x, v, out = np.asarray(x), 0.0, []
    psi = (1 - alpha * beta) * x
    for t, (gradient, lr) in enumerate(zip(map(np.asarray, g), rates, strict=True), 1):
        d = gradient
        if sigma is not None:
            v = sigma * v + (1 - sigma) * gradient**2
            d = gradient / (np.sqrt(v / (1 - sigma**t)) + 1e-8)
        x = (1 - lr * decay) * x
        psi = (1 - lr / beta) * psi + lr * (1 / beta - alpha) * x
        x = (1 + lr * (1 - alpha * beta) / (beta - lr)) * x - lr / (beta - lr) * psi - lr * beta * d
        out.append(x)
    return out


@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 0.9), (2.0, 2.0), (0.5, 0.2), (0.0, 0.5)])
@pytest.mark.parametrize("sigma", [None, 0.9])
def test_against_the_form_with_psi(alpha: float, beta: float, sigma: float | None, x64: None) -> None:
    x, g = normal(9, 5), [normal(i, 5) for i in range(8)]
    rates = np.linspace(0.1, 0.02, 8)
    schedule, shared = gk.schedules.array_schedule(rates), {"alpha": alpha, "beta": beta, "weight_decay": 0.3}
    tx = gk.inna(schedule, **shared) if sigma is None else gk.innaprop(schedule, sigma=sigma, **shared)
    moves = jnp.cumsum(jnp.stack(updates(tx, x, g)), axis=0)
    assert_equal([x + m for m in moves], reference(x, g, rates, alpha, beta, 0.3, sigma), rtol=1e-11, atol=1e-12)


def test_with_unit_dampings_innaprop_is_adamw_without_momentum(x64: None) -> None:
    x, g = normal(9, 5), [normal(i, 5) for i in range(6)]
    got = updates(gk.innaprop(0.1, alpha=1.0, beta=1.0, weight_decay=0.2), x, g)
    # From rest nothing moves psi; decay multiplies before the step and is added after it: the same number.
    assert_equal(got, updates(gk.adamw(0.1, b1=0.0, weight_decay=0.2), x, g))


def test_inna_follows_its_differential_equation(x64: None) -> None:
    """On x^2 / 2: x'' + (alpha + beta) x' + x = 0 from x = 1 with x' = -beta, whose solution for alpha + beta < 2 is a
    damped wave. Steps of h are off by a multiple of h: halving h halves the error."""
    alpha, beta, time = 0.3, 0.5, 3.0
    a = (alpha + beta) / 2
    w = np.sqrt(1 - a**2)
    want = np.exp(-a * time) * (np.cos(w * time) + (a - beta) / w * np.sin(w * time))

    def error(steps: int) -> float:
        tx, one = gk.inna(time / steps, alpha=alpha, beta=beta), jnp.ones(())

        def step(carry: tuple, _: None) -> tuple:
            x, state = carry
            u, state = tx.update(x, state, x)
            return (x + u, state), None

        return float(jax.lax.scan(step, (one, tx.init(one)), None, steps)[0][0]) - want

    coarse, fine = error(1000), error(2000)
    assert abs(fine) < 2e-3
    # The error is c h + O(h^2): its halves differ from a half by a share of h = 0.003.
    assert coarse / fine == pytest.approx(2, rel=0.02)


def test_velocity_survives_large_parameters() -> None:
    """Parameters of 10^4 are rounded to 10^-3 in float32: psi would be too, and a velocity of 10^-4 with it."""
    offset, g = 1e4, [normal(i, 20) * 1e-3 for i in range(5)]
    small, large = (updates(gk.inna(0.05), jnp.full(20, x), g) for x in (0.0, offset))
    for a, b in zip(small, large, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_decay_of_some_leaves_only(x64: None) -> None:
    x = {"bias": normal(0, 3), "kernel": normal(1, 3, 2)}
    zero = jax.tree.map(jnp.zeros_like, x)
    (u,) = updates(gk.inna(0.05, weight_decay=0.5, weight_decay_mask=gk.leaves.by_rank(2)), x, [zero])
    assert not u["bias"].any()
    assert u["kernel"].all()


def test_a_rate_as_large_as_beta_is_refused() -> None:
    for bad in (gk.inna, gk.scale_by_inna):
        with pytest.raises(ValueError, match=r"learning_rate must be in \[0, 0.1\)"):
            bad(0.1, beta=0.1)
    with pytest.raises(ValueError, match=r"learning_rate must be in \[0, 0.9\)"):
        gk.innaprop(1.0)
    with pytest.raises(ValueError, match="beta must be in"):
        gk.innaprop(0.1, beta=0.0)


def test_descends_to_the_minimum(x64: None) -> None:
    end = descend(gk.inna(0.05, alpha=1.0, beta=0.5), normal(0, 3), lambda x: x, 600)[-1]
    # The slowest mode decays as exp(-0.75 t), t = 30.
    assert jnp.abs(end).max() < 1e-8
