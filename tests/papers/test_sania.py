"""SANIA: invariance to the scale of coordinates, one step on a quadratic, and the guards of its step size."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal


def losses(tx: optax.GradientTransformation, scale: jax.Array, steps: int = 12) -> jax.Array:
    """Of a separable problem whose coordinates are multiplied by `scale`."""
    a, x0 = 0.5 + jnp.abs(normal(0, 6)), normal(1, 6)
    tx = optax.with_extra_args_support(tx)

    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum(a * (scale * x) ** 2 / 2 + 0.1 * (scale * x) ** 4)

    def step(carry: Any, _: None) -> Any:
        x, state = carry
        value, g = jax.value_and_grad(loss)(x)
        u, state = tx.update(g, state, x, value=value)
        return (x + u, state), value

    x = x0 / scale
    return jax.lax.scan(step, (x, tx.init(x)), None, steps)[1]


@pytest.mark.parametrize("make", [gk.sania_adagrad_sqr, gk.sania_adam_sqr])
def test_the_scale_of_coordinates_does_not_matter(make: Any, x64: None) -> None:
    """Not with the root, as in AdaGrad and Adam."""
    scale = jnp.exp(3 * normal(2, 6))
    plain, scaled = losses(make(eps=1e-200), jnp.ones(6)), losses(make(eps=1e-200), scale)
    # Every step multiplies rounding errors of 2^-53 by the condition of its quotients, some tens.
    np.testing.assert_allclose(scaled, plain, rtol=1e-6)
    rooted = make(eps=1e-200, is_sqrt=True)
    assert np.abs(losses(rooted, scale) / losses(rooted, jnp.ones(6)) - 1).max() > 0.1


def test_a_quadratic_with_its_curvature_is_solved_in_one_step(key: jax.Array, x64: None) -> None:
    """c = 0 and lambda = 1, in any number of dimensions, as the Hessian is diagonal."""
    a, x = jnp.array([0.5, 2.0, 300.0]), normal(0, 3)
    tx = gk.sania(eps=0.0, key=key)
    u, _ = tx.update(a * x, tx.init(x), x, value=jnp.sum(a * x**2) / 2, hvp_fn=lambda v: a * v)
    # lambda = 1 - sqrt(c) and c is 0 up to a few 2^-53: their root is 1e-8 or so.
    assert_equal(x + u, jnp.zeros(3), atol=1e-7)


def test_the_step_is_the_first_zero_of_the_model(x64: None) -> None:
    """f - lambda Gamma + lambda^2 Gamma / 2 = 0 where it has zeros, and at most 1."""
    g = {"a": normal(0, 3), "b": normal(1, 2, 2)}
    gamma = sum(jnp.sum(x**2) for x in g.values())
    tx = gk.scale_by_preconditioned_polyak()
    for f in (0.1 * gamma, 0.45 * gamma):
        _, state = tx.update(g, tx.init(g), value=f)
        lam = state.metrics["polyak_step"].astype(jnp.float64)  # published in float32
        assert abs(f - lam * gamma + lam**2 * gamma / 2) < 1e-6 * gamma
        assert 0 < lam < 1
    d, state = tx.update(g, tx.init(g), value=10 * gamma)
    assert_equal(d, g)


def test_what_is_reached_is_no_gap(x64: None) -> None:
    """f_min is subtracted; at f_min there is no step; the rate and the largest step are factors and bounds."""
    g = normal(0, 3)
    shifted = gk.scale_by_preconditioned_polyak(f_min=-2.0)
    plain = gk.scale_by_preconditioned_polyak()
    assert_equal(shifted.update(g, shifted.init(g), value=-1.9)[0], plain.update(g, plain.init(g), value=0.1)[0], 1e-12)
    assert_equal(shifted.update(g, shifted.init(g), value=-2.0)[0], jnp.zeros(3))
    capped = gk.scale_by_preconditioned_polyak(max_step=0.25)
    assert_equal(capped.update(g, capped.init(g), value=1e6)[0], 0.25 * g)
    tx = gk.sania_adagrad_sqr(0.5)
    assert_equal(tx.update(g, tx.init(g), g, value=1e6)[0], -0.5 / g)


def test_without_curvature_it_is_adagrad_without_root(x64: None) -> None:
    """Where the model has no zero the step is g over the sum of squares, or over its corrected mean."""
    g = [normal(i, 3) for i in range(3)]
    for tx, mean in ((gk.sania_adagrad_sqr(), False), (gk.sania_adam_sqr(b2=0.9), True)):
        state, s = tx.init(g[0]), jnp.zeros(3)
        for t, x in enumerate(g, 1):
            u, state = tx.update(x, state, x, value=1e6)
            s = 0.9 * s + 0.1 * x**2 if mean else s + x**2
            assert_equal(u, -x / (s / (1 - 0.9**t) if mean else s))


def test_guards(x64: None) -> None:
    g = jnp.ones(2)
    tx = gk.scale_by_preconditioned_polyak(f_min=1.0)
    with pytest.raises(ValueError, match="is below f_min"):
        tx.update(g, tx.init(g), value=0.5)
    assert_equal(jax.jit(tx.update)(g, tx.init(g), value=0.5)[0], jnp.zeros(2))
    with pytest.raises(ValueError, match="needs the extra argument value"):
        tx.update(g, tx.init(g))
    with pytest.raises(ValueError, match="must be a scalar"):
        tx.update(g, tx.init(g), value=g)
    zero = jnp.zeros(2)
    assert_equal(tx.update(zero, tx.init(g), value=3.0)[0], zero)
    bare = gk.scale_by_preconditioned_polyak(sqrt_guard=False)
    assert np.isnan(np.asarray(bare.update(g, bare.init(g), value=3.0)[0])).all()
    assert np.isfinite(np.asarray(bare.update(g, bare.init(g), value=0.5)[0])).all()


def test_bad_input() -> None:
    for bad in (np.nan, "high"):
        with pytest.raises(ValueError, match="f_min must be"):
            gk.sania(f_min=bad)
    with pytest.raises(ValueError, match="b2 must be"):
        gk.sania_adam_sqr(b2=None)
    with pytest.raises(ValueError, match="sania needs the extra argument curvature"):
        tx = gk.sania()
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), value=1.0)
