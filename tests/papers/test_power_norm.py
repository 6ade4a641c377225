"""PowerNorm (Shen et al., 2020)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.layers import PowerNormState, power_norm
from tests.papers.replay import assert_equal, normal

COUNT = jnp.zeros((), jnp.int32)


def test_several_steps_equal_a_reference_of_the_algorithm(x64: None) -> None:
    """Forward and backward in NumPy, five steps, of which the first two are a warm-up."""
    scale, bias, alpha, beta, eps = normal(10, 3), normal(11, 3), 0.8, 0.7, 1e-5
    state, control = PowerNormState(COUNT, jnp.full(3, 2.0)), normal(12, 3)
    q, e = np.full(3, 2.0), np.asarray(control)

    @jax.jit
    def step(x: jax.Array, g: jax.Array, state: Any, control: jax.Array) -> Any:
        f = lambda x, s, b, e: power_norm(  # noqa: E731
            x, s, b, state, e, decay=alpha, backward_decay=beta, warmup_steps=2
        )
        y, back, new = jax.vjp(f, x, scale, bias, control, has_aux=True)
        return y, back(g), new

    for t in range(5):
        x, g = np.asarray(normal(t, 4, 2, 3)), np.asarray(normal(20 + t, 4, 2, 3))
        y, (dx, dscale, dbias, control), state = step(jnp.asarray(x), jnp.asarray(g), state, control)
        batch = (x**2).mean((0, 1))
        root = np.sqrt((batch if t < 2 else q) + eps)
        z, gz = x / root, g * np.asarray(scale)
        h = gz - (1 - beta) * e * z
        assert_equal(y, z * np.asarray(scale) + np.asarray(bias))
        assert_equal(dx, h / root, rtol=1e-10)
        assert_equal((dscale, dbias), ((g * z).sum((0, 1)), g.sum((0, 1))), rtol=1e-10)
        q, e = alpha * q + (1 - alpha) * batch, e + (h * z).mean((0, 1))
        assert_equal((state.mean_square, control), (q, e), rtol=1e-10)
    assert int(state.count) == 5


def test_the_control_settles_where_the_gradient_has_no_part_along_z(x64: None) -> None:
    """With one batch repeated and q at its fixed point, (1 - beta) e -> mean(g z) / mean(z^2): then dx is at right
    angles to z per channel, as the gradient of a normalisation by the batch is. |1 - 0.1| ^ 400 = 5e-19."""
    x, g, one = normal(0, 16, 3), normal(1, 16, 3), jnp.ones(3)
    state = PowerNormState(COUNT, jnp.mean(x**2, 0))

    def step(e: jax.Array, _: None) -> Any:
        f = lambda x, e: power_norm(x, one, 0 * one, state, e, warmup_steps=0, eps=1e-12)[0]  # noqa: E731
        dx, e = jax.vjp(f, x, e)[1](g)
        return e, jnp.abs(jnp.mean(dx * x, 0))

    _, along = jax.jit(lambda e: jax.lax.scan(step, e, None, 400))(jnp.zeros(3))
    assert (along[-1] < 1e-12).all() and (along[0] > 1e-3).any()


def test_inference_and_dtypes() -> None:
    state = PowerNormState(COUNT, jnp.full(3, 4.0))
    x = jnp.full((2, 3), 2.0, jnp.bfloat16)
    y, same = power_norm(x, jnp.ones(3), jnp.zeros(3), state, jnp.zeros(3), use_running_average=True)
    assert y.dtype == jnp.bfloat16
    assert_equal(same, state)
    np.testing.assert_allclose(y.astype(jnp.float32), 1.0, rtol=2**-8)


def test_bad_input() -> None:
    x, c = jnp.ones((2, 3)), jnp.ones(3)
    state = PowerNormState(COUNT, c)
    for name, bad in (("decay", 1.5), ("backward_decay", -0.1), ("warmup_steps", -1), ("eps", 0.0)):
        with pytest.raises(ValueError, match=rf"\b{name} must be"):
            power_norm(x, c, c, state, c, **{name: bad})
    with pytest.raises(ValueError, match="control must have shape"):
        power_norm(x, c, c, state, c[:1])
