"""Path gradients of the reverse KL divergence (Vaitl et al., 2024; Roeder et al., 2017)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.gradients import path_gradient_kl
from tests.papers.replay import assert_equal, normal

PARAMS = {"m": jnp.array([0.5, -1.0]), "s": jnp.array([0.3, -0.2])}


def forward(p: dict, z: jax.Array) -> jax.Array:
    return p["m"].astype(z.dtype)[None] + jnp.exp(p["s"].astype(z.dtype))[None] * z


def log_density(p: dict, x: jax.Array) -> jax.Array:
    s = p["s"].astype(x.dtype)
    z = (x - p["m"].astype(x.dtype)[None]) * jnp.exp(-s)[None]
    return jnp.sum(-jnp.square(z) / 2 - s[None] - np.log(2 * np.pi) / 2, axis=1)


def standard(p: dict, z: jax.Array, target: dict) -> jax.Array:
    x = forward(p, z)
    return jnp.mean(log_density(p, x) - log_density(target, x))


def test_where_the_flow_is_the_target_every_sample_has_the_gradient_zero(x64: None) -> None:
    """The standard estimator has it in expectation alone."""
    params = jax.tree.map(lambda x: x.astype(float), PARAMS)
    fn = path_gradient_kl(forward, log_density, lambda x: log_density(params, x))
    for n in (1, 7):
        value, g = jax.jit(fn)(params, normal(0, n, 2))
        np.testing.assert_allclose(value, 0, atol=1e-14)
        for x in jax.tree.leaves(g):
            np.testing.assert_allclose(x, 0, atol=1e-13)
    other = jax.grad(standard)(params, normal(0, 7, 2), params)
    assert np.abs(other["s"]).max() > 0.05


def test_elsewhere_it_is_the_gradient_in_expectation(x64: None) -> None:
    """KL of two Gaussians in closed form; the same value as the standard estimator."""
    params = jax.tree.map(lambda x: x.astype(float), PARAMS)
    target = {"m": jnp.zeros(2), "s": jnp.array([0.0, 0.5])}
    fn = path_gradient_kl(forward, log_density, lambda x: log_density(target, x))
    z = normal(1, 3, 2)
    assert_equal(fn(params, z)[0], standard(params, z, target))

    def closed(p: dict) -> jax.Array:
        ratio = (jnp.exp(2 * p["s"]) + jnp.square(p["m"] - target["m"])) * jnp.exp(-2 * target["s"])
        return jnp.sum(target["s"] - p["s"] + (ratio - 1) / 2)

    draws = 4000
    many = jax.jit(jax.vmap(lambda z: fn(params, z[None])))(normal(2, draws, 2))
    wanted = jax.value_and_grad(closed)(params)
    for got, want in zip(*map(jax.tree.leaves, (many, wanted)), strict=True):
        got = np.asarray(got)
        assert np.all(np.abs(got.mean(0) - want) <= 5 * got.std(0) / np.sqrt(draws) + 1e-12)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="target_logp must be callable"):
        path_gradient_kl(forward, log_density, 0.0)
    with pytest.raises(ValueError, match=r"one log density per sample, \(batch,\), got shapes \(3,\) and \(\)"):
        path_gradient_kl(forward, log_density, jnp.sum)(PARAMS, jnp.zeros((3, 2)))
