"""GSAM (Zhuang et al., 2022)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal

CURVATURE = {"a": np.array([0.5, 1.0, 3.0]), "b": np.array([2.0, 0.1])}


def loss(x: Any) -> Any:
    return sum(jnp.sum(jnp.asarray(CURVATURE[k]) * x[k] ** 2) / 2 for k in x)


def flat(x: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x["a"]), np.asarray(x["b"])])


def both(x: Any, rho: float) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of the quadratic at x, and at the worst point near by."""
    h = flat(CURVATURE)
    g = h * flat(x)
    return g, h * (flat(x) + rho * g / np.linalg.norm(g))


POINT = {"a": np.array([1.0, -2.0, 0.5]), "b": np.array([0.3, 4.0])}


@pytest.mark.parametrize("minimize", ["perturbed", "clean"])
def test_the_step_across_is_orthogonal_over_all_leaves(minimize: str, x64: None) -> None:
    x, (g, p) = {k: jnp.asarray(v) for k, v in POINT.items()}, both(POINT, 0.4)
    value, got = gk.gradients.gsam(loss, 0.4, alpha=0.7, minimize=minimize)(x)
    followed, other, sign = (p, g, -1) if minimize == "perturbed" else (g, p, 1)
    away = flat(got) - followed
    # 1e-12 is added to |g|.
    assert abs(away @ followed) < 1e-10 * np.linalg.norm(away) * np.linalg.norm(followed)
    assert_equal(
        flat(got), followed + sign * 0.7 * (other - other @ followed / (followed @ followed) * followed), 1e-10
    )
    # The step along `got` makes the gap smaller than one along what is followed alone: across it, g falls.
    assert sign * (away @ other) > 0
    assert_equal(value, loss(x))


def test_without_a_step_across_it_is_sam_or_the_gradient(x64: None) -> None:
    x = {k: jnp.asarray(v) for k, v in POINT.items()}
    perturbed, clean = (gk.gradients.gsam(loss, 0.4, alpha=0.0, minimize=m)(x)[1] for m in ("perturbed", "clean"))
    assert_equal(perturbed, gk.gradients.sam(loss, 0.4)(x)[1])
    assert_equal(flat(clean), flat(CURVATURE) * flat(POINT))


def test_the_step_uphill_follows_the_learning_rate(x64: None) -> None:
    x = {k: jnp.asarray(v) for k, v in POINT.items()}
    for rate, rho in ((0.0, 0.1), (0.05, 0.25), (0.1, 0.4)):
        fn = gk.gradients.gsam(loss, 0.4, alpha=0.5, rho_min=0.1, learning_rate=rate, max_learning_rate=0.1)
        assert_equal(fn(x)[1], gk.gradients.gsam(loss, rho, alpha=0.5)(x)[1])


def test_rates_are_given_together() -> None:
    with pytest.raises(ValueError, match="rho_min, max_learning_rate must be given too"):
        gk.gradients.gsam(loss, alpha=0.5, learning_rate=0.1)


def test_at_a_minimum_it_is_zero() -> None:
    x = {"a": jnp.zeros(3), "b": jnp.zeros(2)}
    for minimize in ("perturbed", "clean"):
        assert (flat(gk.gradients.gsam(loss, 0.4, alpha=0.5, minimize=minimize)(x)[1]) == 0).all()
