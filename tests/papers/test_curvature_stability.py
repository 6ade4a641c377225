"""Sharpness and the limits of stability (Gilmer et al., 2021)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from gradkit.diagnostics import curvature_stability, sharpness, top_hessian_eigenvalue
from tests.papers.replay import normal


def grows(rate: float, b1: float, averaged: bool, curvature: float = 8.0) -> bool:
    """Whether heavy ball on a parabola leaves its minimum."""
    x, v = 1.0, 0.0
    for _ in range(4000):
        g = curvature * x
        v = b1 * v + (1 - b1 if averaged else 1) * g
        x -= rate * v
        if abs(x) > 1e6:
            return True
    return abs(x) > 1e-3


@pytest.mark.parametrize(("b1", "averaged"), [(0.0, False), (0.9, False), (0.5, True), (0.9, True)])
def test_the_limit_is_where_training_diverges(b1: float, averaged: bool) -> None:
    found = curvature_stability(8.0, 0.1, b1=b1, averaged=averaged)
    edge = float(found.largest_rate)
    assert float(curvature_stability(8.0, edge, b1=b1, averaged=averaged).ratio) == pytest.approx(1, rel=1e-6)
    for rate in (0.98 * edge, 1.02 * edge):
        assert grows(rate, b1, averaged) == (float(curvature_stability(8.0, rate, b1=b1, averaged=averaged).ratio) > 1)
    assert np.isinf(curvature_stability(-1.0, 0.1).largest_rate)
    many = curvature_stability(jnp.array([1.0, 2.0]), 0.5)
    np.testing.assert_allclose(many.ratio, [0.25, 0.5])


def test_sharpness_of_a_dense_hessian(x64: None) -> None:
    """Of the mean over weighted microbatches, and of P^(-1) H: in one program, with its residual."""
    params = {"w": normal(0, 3, 4), "head": normal(1, 4, 2)}
    batches = (normal(2, 2, 5, 3), normal(3, 2, 5, 2))
    P = jax.tree.map(lambda x: 0.5 + jnp.square(x), params)
    weights = jnp.array([3.0, 1.0])

    def loss(x: Any, batch: Any) -> jax.Array:
        return jnp.mean(jnp.square(jnp.tanh(batch[0] @ x["w"]) @ x["head"] - batch[1]))

    flat, unravel = ravel_pytree(params)

    def measure(key: jax.Array) -> Any:
        def mean(f: jax.Array) -> jax.Array:
            parts = [loss(unravel(f), jax.tree.map(lambda a, i=i: a[i], batches)) for i in range(2)]
            return 0.75 * parts[0] + 0.25 * parts[1]

        return (
            sharpness(loss, params, key, batches, weights=weights),
            sharpness(loss, params, key, batches, weights=weights, preconditioner=P),
            top_hessian_eigenvalue(lambda x: mean(ravel_pytree(x)[0]), params, key),
            jax.hessian(mean)(flat),
        )

    plain, preconditioned, other, H = jax.jit(measure)(jax.random.key(0))
    want = np.linalg.eigvalsh(H)[-1]
    assert float(plain.value) == pytest.approx(want, rel=1e-9) and float(plain.residual) < 1e-4 * want
    assert float(other) == pytest.approx(want, rel=1e-9)
    root = np.sqrt(np.asarray(ravel_pytree(P)[0]))
    want = np.linalg.eigvalsh(np.asarray(H) / root[:, None] / root[None])[-1]
    assert float(preconditioned.value) == pytest.approx(want, rel=1e-9)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="learning_rate must be"):
        curvature_stability(1.0, -1.0)
    with pytest.raises(ValueError, match="b1 must be"):
        curvature_stability(1.0, 0.1, b1=1.0)
    with pytest.raises(ValueError, match="averaged must be True or False"):
        curvature_stability(1.0, 0.1, averaged="yes")
    x = jnp.ones(2)
    with pytest.raises(ValueError, match="loss_fn must be callable"):
        sharpness(1.0, x, 0, x)
    with pytest.raises(ValueError, match="has shape"):
        sharpness(lambda x, c: jnp.sum(c * x), x, 0, x, preconditioner=jnp.ones(3))
