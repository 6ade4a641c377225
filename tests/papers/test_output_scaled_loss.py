"""Lazy and rich training by the scale of the output (Kumar et al., 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.losses import output_scaled_loss
from tests.papers.replay import normal


def apply(w: Any, x: Any) -> Any:
    return jnp.tanh(x @ w["in"]) @ w["out"]


def error(y: Any, target: Any) -> Any:
    return jnp.mean((y - target) ** 2)


def test_the_first_step_of_the_output_does_not_depend_on_the_scale(x64: None) -> None:
    """While parameters move by 1 / alpha of it; and the gradient is J^T loss' / alpha away from the start too."""
    w = {"in": normal(0, 3, 4), "out": normal(1, 4)}
    x, y = normal(2, 5, 3), normal(3, 5)
    jacobian = jax.jacobian(apply)(w, x)
    first = {name: np.tensordot(np.asarray(-2 * y / 5), np.asarray(j), 1) for name, j in jacobian.items()}
    gradient = jax.jit(jax.grad(lambda w, w0, a: output_scaled_loss(error, apply, w0, a)(w, x, y)))
    for alpha in (0.5, 3.0, 100.0):
        g = gradient(w, w, alpha)
        for name, want in first.items():
            np.testing.assert_allclose(g[name], want / alpha, rtol=1e-11)
    w0 = jax.tree.map(lambda x: 0.9 * x, w)
    residual = 2 * (3.0 * (apply(w, x) - apply(w0, x)) - y) / 5
    g = gradient(w, w0, 3.0)
    for name, j in jacobian.items():
        np.testing.assert_allclose(g[name], np.tensordot(np.asarray(residual), np.asarray(j), 1) / 3, rtol=1e-11)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="alpha must be"):
        output_scaled_loss(error, apply, {}, 0.0)
