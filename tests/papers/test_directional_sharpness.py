"""Directional sharpness (Pan, Li, 2023)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.diagnostics import directional_sharpness
from tests.papers.replay import assert_equal, normal


def test_is_the_quotient_with_the_hessian(x64: None) -> None:
    """Over all leaves together, at a point where the Hessian couples them; length and sign of the step do not count."""
    x, u = ({"a": normal(s, 3), "b": normal(s + 1, 2, 2)} for s in (0, 2))
    flat = lambda tree: jnp.concatenate([tree["a"], tree["b"].ravel()])  # noqa: E731
    loss = lambda v: jnp.sum(jnp.sin(v)) ** 2 + jnp.sum(v**4)  # noqa: E731
    H, v = np.asarray(jax.hessian(loss)(flat(x))), np.asarray(flat(u))
    want = v @ H @ v / (v @ v)
    for scale in (1.0, -1e-30):
        scaled = jax.tree.map(lambda u, scale=scale: scale * u, u)
        got = jax.jit(lambda x, u: directional_sharpness(lambda p: loss(flat(p)), x, u))(x, scaled)
        assert_equal(got, want)


def test_clipping_lowers_it_where_one_coordinate_is_steep(x64: None) -> None:
    """Curvatures 100, 1, 1, ...: along the gradient it is near 100, along the clipped gradient near their mean."""
    curvature = jnp.ones(20).at[0].set(100.0)
    loss = lambda x, c: 0.5 * jnp.sum(c * x**2)  # noqa: E731
    x = jnp.ones(20)
    g = jax.grad(loss)(x, curvature)
    plain, clipped = (directional_sharpness(loss, x, u, curvature) for u in (g, jnp.clip(g, -1, 1)))
    assert_equal(plain, (100.0**3 + 19) / (100.0**2 + 19))
    assert_equal(clipped, 119 / 20)


def test_no_direction_and_narrow_parameters() -> None:
    loss = lambda x: jnp.sum(x["w"].astype(jnp.float32) ** 2)  # noqa: E731
    x = {"w": jnp.ones(4, jnp.bfloat16), "none": None}
    assert directional_sharpness(loss, x, {"w": jnp.zeros(4), "none": None}) == 0
    # Half of each squared entry of a unit vector of four equal ones, exact in bfloat16; with an update too small for
    # its square to be a float32.
    got = directional_sharpness(loss, x, {"w": jnp.full(4, 1e-30), "none": None})
    assert got == 2 and got.dtype == jnp.float32
    assert directional_sharpness(lambda x: jnp.zeros(()), {}, {}) == 0


def test_bad_input() -> None:
    x = jnp.ones(3)
    with pytest.raises(ValueError, match="loss_fn must be callable"):
        directional_sharpness(1.0, x, x)
    with pytest.raises(ValueError, match="has shape"):
        directional_sharpness(jnp.sum, x, jnp.ones(2))
    with pytest.raises(ValueError, match="complex"):
        directional_sharpness(jnp.sum, x, x + 1j)
