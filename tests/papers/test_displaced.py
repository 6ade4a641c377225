"""Gradients beside the parameters: which point, which value, which aux."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradkit.gradients import displaced_gradient


def cubic(x: dict, scale: float = 1.0) -> jax.Array:
    return scale * jnp.sum(x["w"] ** 3) / 3


def test_value_here_gradient_there() -> None:
    """On a cubic, whose gradient x^2 names the point it was taken at."""
    fn = displaced_gradient(cubic, lambda g, x: {"w": g["w"] - x["w"]})
    value, g = jax.jit(fn)({"w": jnp.array([1.0, 3.0])}, scale=2.0)
    # e = 2 x^2 - x, so x + e = 2 x^2 and the gradient is 2 (2 x^2)^2.
    assert float(value) == pytest.approx(2 * 28 / 3, rel=2.0**-22)
    np.testing.assert_allclose(g["w"], [8.0, 2 * 18.0**2], rtol=2.0**-22)


def test_no_displacement_is_value_and_grad() -> None:
    x = {"w": jnp.array([1.0, 3.0]), "none": None}
    fn = displaced_gradient(cubic, lambda g, x: jax.tree.map(jnp.zeros_like, g))
    got, want = fn(x, 3.0), jax.value_and_grad(cubic)(x, 3.0)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_aux_is_that_of_the_first_pass() -> None:
    """Statistics of BatchNorm would otherwise be those of the displaced parameters."""
    fn = displaced_gradient(lambda x: (x**2, {"seen": x}), lambda g, x: g, has_aux=True)
    (value, aux), g = fn(jnp.array(2.0))
    assert (float(value), float(aux["seen"]), float(g)) == (4.0, 2.0, 12.0)


def test_dtypes_and_containers() -> None:
    """bfloat16 stays; a displacement may be wider; NNX states are trees like any other."""
    state = nnx.state(nnx.Linear(2, 2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    wide = displaced_gradient(
        lambda s: sum(jnp.sum(x**2) for x in jax.tree.leaves(s)),
        lambda g, x: jax.tree.map(lambda g: g.astype(jnp.float32), g),
    )
    _, g = wide(state)
    assert jax.tree.structure(g) == jax.tree.structure(state)
    # x + 2 x = 3 x, and the gradient there 6 x; each rounded to bfloat16.
    for got, x in zip(jax.tree.leaves(g), jax.tree.leaves(state), strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(float), 6 * x.astype(float), rtol=2 * 2.0**-8)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="loss_fn must be callable"):
        displaced_gradient(None, lambda g, x: g)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="displacement must be callable"):
        displaced_gradient(cubic, 0.1)  # pyright: ignore[reportArgumentType]
