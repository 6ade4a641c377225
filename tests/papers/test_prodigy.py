"""Prodigy (Mishchenko, Defazio, 2023)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.by_numpy import by_numpy
from tests.papers.replay import assert_equal, descend, normal, updates


def estimates(tx: optax.GradientTransformation, x: Any, grads: list[Any]) -> list[float]:
    state, update, out = tx.init(x), by_numpy(tx.update), []
    for g in grads:
        u, state = update(g, state, x)
        x = optax.apply_updates(x, u)
        out.append(float(gk.diagnostics.metrics(state)["d"]))
    return out


def by_hand(x: np.ndarray, grads: list, d0: float, wd: float, eps: float, slice_p: int) -> tuple[np.ndarray, float]:
    """The defaults of the official code, and decay."""
    start, b1, b2 = x, 0.9, 0.99
    b3, d, largest = b2**0.5, d0, d0
    m = v = np.zeros_like(x)
    s, r = np.zeros_like(x[::slice_p]), 0.0
    for g in grads:
        eta = d
        r = b3 * r + d / d0 * eta * g[::slice_p] @ (start - x)[::slice_p]
        m, v = b1 * m + (1 - b1) * d * g, b2 * v + (1 - b2) * d**2 * g**2
        s = b3 * s + d / d0 * eta * g[::slice_p]
        found = r / np.abs(s).sum()
        largest = max(largest, found)
        d = largest
        x = x - eta * (m / (np.sqrt(v) + d * eps) + wd * x)
    return x, d


@pytest.mark.parametrize("slice_p", [1, 3])
def test_the_algorithm_in_numpy(slice_p: int, x64: None) -> None:
    """eps is large enough to see which of the two estimates it is multiplied by."""
    x, centre = np.asarray(normal(0, 8)), np.asarray(normal(1, 8))
    tx = gk.prodigy(b2=0.99, d0=0.01, eps=0.1, weight_decay=0.2, slice_p=slice_p)
    state, update, path, grads = tx.init(jnp.asarray(x)), by_numpy(tx.update), jnp.asarray(x), []
    for t in range(8):
        g = np.asarray(path) - centre + 0.1 * np.asarray(normal(2 + t, 8))
        grads.append(g)
        u, state = update(jnp.asarray(g), state, path)
        path = path + u
    want, d = by_hand(x, grads, 0.01, 0.2, 0.1, slice_p)
    assert_equal(path, want)
    assert d > 0.011
    np.testing.assert_allclose(gk.diagnostics.metrics(state)["d"], d, rtol=1e-12)


def test_the_trajectory_does_not_know_the_scale_of_the_loss(x64: None) -> None:
    x, curvature = normal(0, 5), jnp.linspace(0.1, 3.0, 5)

    def end(scale: float) -> Any:
        return descend(gk.prodigy(eps=0.0, d0=1e-3), x, lambda x: scale * curvature * x, 20)

    # Twenty steps of a recursion that doubles what it starts from: 2^20 roundings of 2^-53.
    assert_equal(end(1.0), end(1000.0), rtol=1e-9)


def test_the_estimate_never_falls_and_its_growth_is_limited_after_the_first_departure(x64: None) -> None:
    x, centre = normal(0, 6), 3 + normal(1, 6)

    def run(growth_rate: Any) -> np.ndarray:
        tx = gk.prodigy(d0=1e-4, growth_rate=growth_rate)
        state, update, path, out = tx.init(x), by_numpy(tx.update), x, [1e-4]
        for _ in range(30):
            u, state = update(path - centre, state, path)
            path = path + u
            out.append(float(gk.diagnostics.metrics(state)["d"]))
        return np.array(out)

    limited, free = run(1.05), run(None)
    for d in (limited, free):
        assert (np.diff(d) >= 0).all()
    left = int(np.argmax(limited > limited[0]))
    ratios = limited[left + 1 :] / limited[left:-1]
    # A rounding of the product and one of the quotient.
    assert ratios.max() <= 1.05 * (1 + 4 * 2**-53)
    assert (free[1:] / free[:-1]).max() > 1.05 and free[-1] > limited[-1]


def test_the_first_departure_is_not_limited(x64: None) -> None:
    x, grads = jnp.array([1.0]), [jnp.array([1.0])] * 3
    # The second step finds r / |s| > 2 d0: the moments are not corrected, so the first step is 3 d0 long.
    d = estimates(gk.prodigy(d0=0.01, d_coef=10.0, growth_rate=1.001), x, grads)
    assert d[0] == 0.01 and d[1] > 0.02
    np.testing.assert_allclose(d[2], 1.001 * d[1], rtol=1e-14)


@pytest.mark.parametrize("bias_correction", [False, True])
def test_a_warm_up_from_zero_and_gradients_of_zeros_leave_everything_as_it_is(bias_correction: bool, x64: None) -> None:
    """`optax.contrib.prodigy` is NaN for ever after either."""
    x, grads = normal(0, 4), [normal(t, 4) for t in range(1, 6)]
    warm = gk.prodigy(optax.linear_schedule(0.0, 1.0, 2), d0=0.01, bias_correction=bias_correction)
    state = warm.init(x)
    u, after = warm.update(grads[0], state, x)
    assert_equal(u, 0 * x, rtol=0, atol=0)
    moving = ("mu", "nu", "total", "numerator", "largest", "moved")
    for name in moving:
        assert_equal(gk.find(after, name), gk.find(state, name), rtol=0, atol=0)
    assert all(np.isfinite(np.asarray(u)).all() for u in updates(warm, x, grads))
    # Zeros first: as if they had not been.
    plain = gk.prodigy(d0=0.01, bias_correction=bias_correction)
    got = updates(plain, x, [0 * x, 0 * x, *grads])
    assert_equal(got[:2], [0 * x, 0 * x], rtol=0, atol=0)
    assert_equal(got[2:], updates(plain, x, grads))


def test_in_one_dimension_the_estimate_ends_within_a_factor_of_the_distance(x64: None) -> None:
    """On |x| from 5: a lower bound of the distance (Theorem 1), and not far below."""
    tx, x = gk.prodigy(d0=1e-6), jnp.array([5.0])
    state, update = tx.init(x), by_numpy(tx.update)
    for _ in range(120):
        u, state = update(jnp.sign(x), state, x)
        x = x + u
    d = float(gk.diagnostics.metrics(state)["d"])
    assert 5 / 8 < d <= 5 * 1.5


def test_with_safeguard_a_warm_up_does_not_inflate_the_estimate(x64: None) -> None:
    """s has d^2 g in the place of d eta g: of half the rate, half of r / |s|."""
    x, grads = normal(0, 4), [jnp.ones(4)] * 2
    plain, safe = (gk.prodigy(0.5, d0=0.01, d_coef=100.0, safeguard_warmup=safe) for safe in (False, True))
    a, b = (estimates(tx, x, grads)[1] for tx in (plain, safe))
    np.testing.assert_allclose(b, a / 2, rtol=1e-12)


def test_decay_is_multiplied_by_the_step_size_and_only_on_its_leaves(x64: None) -> None:
    x = {"a": normal(0, 3), "b": normal(1, 3)}
    g = {"a": normal(2, 3), "b": normal(3, 3)}
    mask = {"a": True, "b": False}
    plain, decayed = (
        updates(gk.prodigy(0.7, d0=0.01, weight_decay=wd, weight_decay_mask=mask), x, [g])[0] for wd in (0.0, 0.3)
    )
    assert_equal(decayed["b"], plain["b"], rtol=0, atol=0)
    assert_equal(decayed["a"], plain["a"] - 0.01 * 0.7 * 0.3 * x["a"])


def test_the_first_moment_is_of_the_old_estimate_also_without_momentum(x64: None) -> None:
    """The official code has the new one for b1 = 0 alone."""
    x, grads = normal(0, 4), [jnp.ones(4)] * 3
    near, at = (updates(gk.prodigy(d0=0.01, d_coef=50.0, b1=b1), x, grads) for b1 in (1e-9, 0.0))
    assert_equal(near, at, rtol=1e-7)
