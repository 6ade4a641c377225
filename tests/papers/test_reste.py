"""ReSTE: its gradient and the schedule of its power (Wu et al., 2023)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.layers import reste_indicators, reste_sign
from gradkit.schedules import reste_power
from tests.papers.replay import assert_equal, normal


def factor(x: jax.Array, power: float, **more: float) -> np.ndarray:
    return np.asarray(jax.vmap(jax.grad(lambda x: reste_sign(x, power, **more)))(x))


def test_power_one_is_the_clipped_straight_through_estimator(x64: None) -> None:
    x = jnp.array([-2.0, -1.5, -0.3, -0.05, 0.0, 0.1, 1.49, 1.51])
    np.testing.assert_array_equal(reste_sign(x, 1.0), np.sign(x))
    assert_equal(factor(x, 1.0), (np.abs(x) <= 1.5).astype(float))
    assert_equal(factor(x, 1.0, clip=0.2), (np.abs(x) <= 0.2).astype(float))


def test_the_derivative_is_that_of_the_root_beyond_the_chord(x64: None) -> None:
    """Its integral from 0.1 to b is b^(1/o) - 0.1^(1/o), and over the chord 0.1^(1/o)."""
    for power in (1.7, 3.0):
        points, weights = np.polynomial.legendre.leggauss(40)
        for a, b in ((0.0, 0.1), (0.1, 0.9), (0.1, 1.5)):
            x = (b - a) / 2 * points + (a + b) / 2
            got = (b - a) / 2 * np.sum(weights * factor(jnp.asarray(x), power))
            want = b ** (1 / power) - a ** (1 / power)
            # The rule of 40 points has an error of 1e-9 for a root that starts at 0.1 of its chord.
            np.testing.assert_allclose(got, want, rtol=1e-7)
        both = factor(jnp.array([0.5, -0.5]), power)
        assert both[0] == both[1] > 0


def test_the_power_may_be_traced_and_has_no_gradient(x64: None) -> None:
    x = jnp.array([0.05, 0.4, 2.0])
    many = jax.jit(jax.vmap(lambda o: jax.grad(lambda x: jnp.sum(reste_sign(x, o)))(x)))(jnp.array([1.0, 2.0]))
    assert_equal(many, np.stack([factor(x, 1.0), factor(x, 2.0)]))
    assert float(jax.grad(lambda o: jnp.sum(reste_sign(x, o)))(2.0)) == 0.0
    low = jax.grad(lambda x: jnp.sum(reste_sign(x, 2.0).astype(jnp.float32)))(x.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16 and np.all(np.isfinite(low.astype(jnp.float32)))


def test_the_schedule_is_the_formula_of_the_code(x64: None) -> None:
    t = np.arange(14)
    want = 1 + (1 - np.cos(np.pi / 2 * np.minimum(t / 10, 1))) * (4.0 - 1)
    assert_equal(reste_power(10, 4.0)(jnp.asarray(t)), want)
    assert_equal(reste_power(10)(10), 3.0)


def test_a_larger_power_is_nearer_to_the_sign_and_less_steady(x64: None) -> None:
    """Both indicators in NumPy, over two layers; the gradients are those of the estimator itself."""
    w = {"a": 0.5 * normal(0, 6, 4), "b": 0.5 * normal(1, 5)}
    found = []
    for power in (1.0, 2.0, 4.0):
        grads = jax.tree.map(lambda w, o=power: jnp.asarray(factor(w.reshape(-1), o)).reshape(w.shape), w)
        got = reste_indicators(w, grads, power)
        flat = [np.ravel(x) for x in w.values()]
        error = sum(np.linalg.norm(np.sign(x) * np.abs(x) ** (1 / power) - np.sign(x)) for x in flat)
        assert_equal(got, (error, sum(np.var(np.abs(g), ddof=1) for g in map(np.asarray, grads.values()))))
        found.append([float(x) for x in got])
    errors, stabilities = zip(*found, strict=True)
    assert errors[0] > errors[1] > errors[2] and stabilities[0] < stabilities[1] < stabilities[2]
    with pytest.raises(ValueError, match="do not match"):
        reste_indicators(w, {"a": w["a"]}, 2.0)


def test_bad_input() -> None:
    for name, bad in (("power", 0.5), ("clip", 0.0), ("chord", -1.0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            reste_sign(jnp.ones(2), **{"power": 2.0, name: bad})
    with pytest.raises(ValueError, match="chord must be at most clip"):
        reste_sign(jnp.ones(2), 2.0, clip=0.1, chord=0.2)
