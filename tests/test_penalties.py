"""Penalties, their derivatives and proximal operators against each other and against a search over a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.linalg import (
    mcp_concave_grad,
    mcp_penalty,
    prox_l1,
    prox_mcp,
    prox_scad,
    scad_concave_grad,
    scad_penalty,
)

GRID = np.linspace(-6, 6, 24001)
KINDS = {"scad": (scad_penalty, scad_concave_grad, prox_scad), "mcp": (mcp_penalty, mcp_concave_grad, prox_mcp)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_penalty_is_its_two_parts(kind: str, x64: None) -> None:
    """h' + lam S(z) is the derivative, away from the kinks."""
    penalty, concave, _ = KINDS[kind]
    z = jnp.asarray(np.random.default_rng(0).uniform(-5, 5, 400))
    slope = jax.vmap(jax.grad(lambda z: penalty(z, 0.8)))(z)
    np.testing.assert_allclose(concave(z, 0.8) + 0.8 * jnp.sign(z), slope, rtol=1e-12, atol=1e-12)
    assert float(penalty(jnp.array(0.0), 0.8)) == 0.0 and float(concave(jnp.array(0.0), 0.8)) == 0.0


@pytest.mark.parametrize("step", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("kind", KINDS)
def test_a_proximal_operator_minimises(kind: str, step: float, x64: None) -> None:
    """No point of a grid is better than the operator's by more than rounding, and the operator is near the best."""
    penalty, _, prox = KINDS[kind]
    for z in np.linspace(-4.3, 4.3, 44):
        objective = (GRID - z) ** 2 / (2 * step) + np.asarray(penalty(jnp.asarray(GRID), 0.8))
        x = prox(jnp.asarray(z), 0.8, step)
        own = (float(x) - z) ** 2 / (2 * step) + float(penalty(x, 0.8))
        assert own <= objective.min() + 1e-14
        assert abs(float(x) - GRID[objective.argmin()]) < 1e-3  # two steps of the grid


def test_operators_are_continuous_and_odd(x64: None) -> None:
    z = jnp.asarray(GRID)
    for prox, slope in ((prox_scad, 2.7 / 1.7), (prox_mcp, 2.0), (lambda z, lam: prox_l1(z, lam), 1.0)):
        x = np.asarray(prox(z, 0.8))
        assert np.abs(np.diff(x)).max() <= slope * (GRID[1] - GRID[0]) * (1 + 1e-9)
        np.testing.assert_array_equal(x, -np.asarray(prox(-z, 0.8)))


def test_traced_weights_and_dtypes() -> None:
    z = jnp.linspace(-3, 3, 7, dtype=jnp.bfloat16)
    for kind in KINDS.values():
        for function in kind:
            traced = jax.jit(function)(z, jnp.float32(0.5))
            assert traced.dtype == jnp.bfloat16 and traced.shape == z.shape


def test_bad_input() -> None:
    z = jnp.ones(2)
    for function, kwargs in (
        (prox_scad, {"step": 2.7}),
        (prox_mcp, {"step": 2.0}),
        (prox_scad, {"a": 2.0}),
        (scad_penalty, {"a": 2.0}),
        (scad_concave_grad, {"a": 1.0}),
        (prox_mcp, {"gamma": 1.0}),
        (mcp_penalty, {"gamma": 1.0}),
        (mcp_concave_grad, {"gamma": 0.5}),
    ):
        with pytest.raises(ValueError, match=rf"{next(iter(kwargs))} must be in"):
            function(z, 0.5, **kwargs)
        with pytest.raises(ValueError, match="l1 must be in"):
            function(z, -0.5)
    with pytest.raises(ValueError, match="threshold must be in"):
        prox_l1(z, -1.0)
