"""Magnitude invariant parametrisation (Ortiz, Guttag, Dalca, 2023)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.layers import mip_combine, mip_encode
from tests.papers.replay import assert_equal


def test_the_norm_does_not_depend_on_the_input(x64: None) -> None:
    z = jnp.asarray(np.random.default_rng(0).uniform(size=(50, 7)))
    assert_equal(jnp.sum(mip_encode(z) ** 2, -1), np.full(50, 7.0))
    assert_equal(jnp.sum(mip_encode(z, kind="linear"), -1), np.full(50, 7.0))
    # Cosine and sine of an angle in [0, pi / 2] tell where z is.
    assert_equal(jnp.arctan2(mip_encode(z)[:, 7:], mip_encode(z)[:, :7]) * 2 / jnp.pi, z, rtol=1e-11)


def test_weights_are_the_sum() -> None:
    base, delta = {"w": jnp.ones((2, 3), jnp.bfloat16)}, {"w": jnp.full((2, 3), 0.5)}
    assert (mip_combine(base, delta)["w"] == 1.5).all() and mip_combine(base, delta)["w"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="delta must have the shapes of base"):
        mip_combine(base, {"w": jnp.ones(3)})


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"z must be in \[0, 1\]"):
        mip_encode(jnp.array([0.5, 1.5]))
    with pytest.raises(ValueError, match=r"z must be in \[0, 1\]"):
        mip_encode(jnp.array([float("nan")]))
    with pytest.raises(ValueError, match="kind must be one of"):
        mip_encode(jnp.ones(2), kind="fourier")
    assert np.isfinite(jax.jit(mip_encode)(jnp.array([2.0]))).all()
