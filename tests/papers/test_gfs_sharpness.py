"""Sharpness of gradient flow solutions (Kreisler et al., 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.diagnostics import gfs_sharpness, scalar_gfs_sharpness


def loss(x: jax.Array) -> jax.Array:
    return 0.5 * (jnp.prod(x) - 1) ** 2


def test_two_factors_in_closed_form(x64: None) -> None:
    """sqrt((x^2 - y^2)^2 + 4), and after a step of size h, x^2 - y^2 times 1 - h^2 (x y - 1)^2: it falls."""
    h = 0.05
    points = [(3.0, 0.2), (0.5, 4.0), (-2.0, -1.0), (1.0, 1.0)]
    for x, y in points:
        phi = float(scalar_gfs_sharpness(jnp.array([x, y])))
        assert phi == pytest.approx(np.sqrt((x * x - y * y) ** 2 + 4), rel=1e-10)
        r = x * y - 1
        new = jnp.array([x - h * r * y, y - h * r * x])
        shrunk = (x * x - y * y) * (1 - h * h * r * r)
        assert float(scalar_gfs_sharpness(new)) == pytest.approx(np.sqrt(shrunk**2 + 4), rel=1e-10)
        assert float(scalar_gfs_sharpness(new)) <= phi + 1e-12


@pytest.mark.parametrize("target", [1.0, 2.5])
def test_the_end_keeps_what_gradient_flow_keeps(target: float, x64: None) -> None:
    """Four factors, two of them negative, against the integrated flow; its end has the product and the differences."""
    x = jnp.array([1.7, -0.4, -0.9, 0.6])

    def f(x: jax.Array) -> jax.Array:
        return 0.5 * (jnp.prod(x) - target) ** 2

    def both(x: jax.Array, key: jax.Array) -> Any:
        found = gfs_sharpness(f, x, key, tolerance=1e-9, error_per_step=1e-8)
        return found, scalar_gfs_sharpness(x, target=target), jnp.linalg.eigvalsh(jax.hessian(f)(found.params))

    found, closed, values = jax.jit(both)(x, jax.random.key(0))
    y = np.asarray(found.params)
    assert found.gradient_norm < 1e-9
    # The integrator is exact to 1e-8 per step; there are some hundred.
    np.testing.assert_allclose(y**2 - y[0] ** 2, np.asarray(x) ** 2 - float(x[0]) ** 2, atol=1e-5)
    assert np.prod(y) == pytest.approx(target, rel=1e-8)
    assert float(found.sharpness) == pytest.approx(float(values[-1]), rel=1e-9)
    assert float(found.sharpness) == pytest.approx(float(closed), rel=1e-5)


def test_a_solver_of_ones_own(x64: None) -> None:
    found = gfs_sharpness(loss, jnp.array([9.0, 9.0]), 0, flow_solver=lambda f, x: jnp.array([2.0, 0.5]))
    assert float(found.sharpness) == pytest.approx(4.25, rel=1e-10)
    with pytest.raises(ValueError, match="has shape"):
        gfs_sharpness(loss, jnp.ones(2), 0, flow_solver=lambda f, x: jnp.ones(3))


@pytest.mark.parametrize("start", [(3.18, 0.25), (3.25, 0.35)])
def test_gradient_descent_converges_just_below_the_edge(start: tuple[float, float], x64: None) -> None:
    """Started a little above 2 / h with a small loss, the sharpness of the flow's solution never rises, and that of the
    minimum which is found is below 2 / h, by less than twice of what it was above."""
    h = 0.2

    def step(x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        return x - h * jax.grad(loss)(x), scalar_gfs_sharpness(x)

    end, phi = jax.jit(lambda x: jax.lax.scan(step, x, None, 3000))(jnp.array(start))
    phi = np.asarray(phi)
    assert phi[0] > 2 / h and (np.diff(phi) <= 1e-10 * phi[0]).all()
    assert float(loss(end)) < 1e-20
    assert 0 < 2 / h - phi[-1] < 2 * (phi[0] - 2 / h)
    # At a minimum the solution of the flow is the point itself.
    assert phi[-1] == pytest.approx(float(jnp.sum(jnp.square(end))), rel=1e-6)


def test_many_factors_and_small_ones() -> None:
    """In float32, also where one weight is so small that its square is lost beside the others."""
    x = np.array([1e-3, 2.0, 3.0, 1.5], np.float64)
    got = float(scalar_gfs_sharpness(jnp.asarray(x, jnp.float32)))
    low, high = -(x.min() ** 2), 10.0
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if np.prod(x**2 + c) < 1 else (low, c)
    # Squares are rounded to 2^-24, four of them in a product.
    assert got == pytest.approx(np.sum(1 / (x**2 + low)), rel=1e-5)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="the product of x must have the sign of target"):
        scalar_gfs_sharpness(jnp.array([-1.0, 2.0]))
    with pytest.raises(ValueError, match="the product of x must have the sign of target"):
        scalar_gfs_sharpness(jnp.array([0.0, 2.0]))
    assert np.isnan(jax.jit(scalar_gfs_sharpness)(jnp.array([-1.0, 2.0])))
    with pytest.raises(ValueError, match=r"x must have shape \(n,\)"):
        scalar_gfs_sharpness(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="tolerance must be"):
        gfs_sharpness(loss, jnp.ones(2), 0, tolerance=0.0)
