"""`scale_by_diag_curvature`: what it becomes for certain curvatures, and each option against its formula in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal


def directions(tx, gradients, curvatures):
    state, out = tx.init(gradients[0]), []
    for g, h in zip(gradients, curvatures, strict=True):
        d, state = tx.update(g, state, curvature=h)
        out.append(d)
    return out


def test_with_the_gradient_for_curvature_it_is_adam(x64: None) -> None:
    g = [normal(i, 5) for i in range(4)]
    found = directions(gk.scale_by_diag_curvature(b1=0.8, b2=0.9, eps=1e-3), g, g)
    tx = gk.scale_by_adam(b1=0.8, b2=0.9, eps=1e-3)
    state = tx.init(g[0])
    for x, d in zip(g, found, strict=True):
        want, state = tx.update(x, state)
        assert_equal(d, want)


@pytest.mark.parametrize(
    ("second", "floor", "bias_correction", "start"),
    [
        case
        for case in itertools.product(("rms", "mean"), ("add", "max"), (True, False), ("zero", "first"))
        if not (case[2] and case[3] == "first")
    ],
)
def test_against_numpy(second: str, floor: str, bias_correction: bool, start: str, x64: None) -> None:
    b1, b2, power, eps = 0.7, 0.8, 0.6, 0.05
    g, h = [normal(i, 6) for i in range(4)], [normal(10 + i, 6) for i in range(4)]
    tx = gk.scale_by_diag_curvature(
        b1=b1,
        b2=b2,
        second=second,
        floor=floor,
        power=power,
        eps=eps,
        bias_correction=bias_correction,
        start=start,
    )
    m = v = np.zeros(6)
    for t, (x, c, d) in enumerate(zip(g, h, directions(tx, g, h), strict=True), 1):
        x, c = np.asarray(x), np.asarray(c)
        new = c * c if second == "rms" else c
        m = b1 * m + (1 - b1) * x
        v = new if t == 1 and start == "first" else b2 * v + (1 - b2) * new
        m_hat, v_hat = (m / (1 - b1**t), v / (1 - b2**t)) if bias_correction else (m, v)
        D = (np.sqrt(v_hat) if second == "rms" else np.abs(v_hat)) ** power
        assert_equal(d, m_hat / (D + eps if floor == "add" else np.maximum(D, eps)))


def test_without_momentum_there_is_none_to_keep() -> None:
    assert gk.scale_by_diag_curvature(b1=0.0).init(jnp.zeros(3)).mu is None


def test_a_curvature_of_zero(x64: None) -> None:
    """Without eps nothing is divided by it."""
    tx = gk.scale_by_diag_curvature(b1=0.0, eps=0.0)
    assert_equal(directions(tx, [jnp.ones(2)], [jnp.array([0.0, 2.0])])[0], jnp.array([0.0, 0.5]))
    tx = gk.scale_by_diag_curvature(b1=0.0, eps=0.0, power=0.0)
    assert_equal(directions(tx, [jnp.ones(2)], [jnp.array([0.0, 2.0])])[0], jnp.ones(2))


def test_bad_input() -> None:
    for name in ("second", "floor", "start"):
        with pytest.raises(ValueError, match=f"{name} must be one of"):
            gk.scale_by_diag_curvature(**{name: "nothing"})
    with pytest.raises(ValueError, match="bias_correction must be False"):
        gk.scale_by_diag_curvature(start="first")
    with pytest.raises(ValueError, match=r"power must be in \[0, 1\]"):
        gk.scale_by_diag_curvature(power=1.5)
    with pytest.raises(ValueError, match="needs the extra argument curvature"):
        gk.scale_by_diag_curvature().update(jnp.ones(2), gk.scale_by_diag_curvature().init(jnp.ones(2)))


def test_bfloat16_curvature_is_taken_in_float32(key: jax.Array) -> None:
    tx = gk.scale_by_diag_curvature(b1=0.0, eps=0.0)
    d = directions(tx, [jnp.ones(2)], [jnp.full(2, 3.0, jnp.bfloat16)])[0]
    np.testing.assert_allclose(d, 1 / 3, rtol=1e-6)
