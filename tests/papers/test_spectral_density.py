"""Densities, traces and criteria of spectra (Gabdullin, 2024; Ghorbani et al., 2019)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.diagnostics import (
    accumulated_hvp,
    hessian_criteria,
    hessian_trace,
    lanczos,
    lanczos_tridiagonal,
    ritz,
    spectral_density,
)
from tests.papers.replay import normal


def symmetric(n: int, seed: int = 0) -> np.ndarray:
    a = np.random.default_rng(seed).standard_normal((n, n))
    return (a + a.T) / 2


def test_the_matrix_and_its_vectors(x64: None) -> None:
    """V orthonormal, V H V^T = T; all steps give the spectrum; k steps integrate degree 2 k - 1."""
    H = symmetric(9)
    like = {"a": jnp.zeros(4), "b": jnp.zeros((5, 1))}
    flat = lambda t: jnp.concatenate([t["a"], t["b"].ravel()])  # noqa: E731
    tree = lambda v: {"a": v[:4], "b": v[4:, None]}  # noqa: E731
    product = lambda t: tree(jnp.asarray(H) @ flat(t))  # noqa: E731

    def both(key: jax.Array) -> Any:
        few = lanczos_tridiagonal(product, key, like, 4)
        return (
            few,
            ritz(few.alphas, few.betas[:-1]),
            lanczos_tridiagonal(product, key, like, 9),
            lanczos(product, key, like, 4),
        )

    few, found, all_, plain = jax.jit(both)(jax.random.key(1))
    V = np.concatenate([few.basis["a"], few.basis["b"][..., 0]], axis=1)
    T = np.diag(few.alphas) + np.diag(few.betas[:-1], 1) + np.diag(few.betas[:-1], -1)
    np.testing.assert_allclose(V @ V.T, np.eye(4), atol=1e-13)
    np.testing.assert_allclose(V @ H @ V.T, T, atol=1e-12)
    # What is left after the last step: H V^T - V^T T has one column, of norm beta_k.
    left = H @ V.T - V.T @ T
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), [0, 0, 0, few.betas[-1]], atol=1e-12)
    for p in range(8):
        want = V[0] @ np.linalg.matrix_power(H, p) @ V[0]
        assert np.dot(found.weights, np.asarray(found.values) ** p) == pytest.approx(want, rel=1e-10, abs=1e-12)
    p = 8  # one degree too many
    want = V[0] @ np.linalg.matrix_power(H, p) @ V[0]
    assert abs(np.dot(found.weights, np.asarray(found.values) ** p) - want) > 1e-3 * abs(want)
    values = np.linalg.eigvalsh(np.diag(all_.alphas) + np.diag(all_.betas[:-1], 1) + np.diag(all_.betas[:-1], -1))
    np.testing.assert_allclose(values, np.linalg.eigvalsh(H), atol=1e-12)
    np.testing.assert_array_equal(plain[0], few.alphas)
    np.testing.assert_array_equal(plain[1], few.betas[:-1])


def test_the_density_of_a_small_network(x64: None) -> None:
    """It adds up to 1, and its moments are those of the eigenvalues of the dense Hessian.

    Of probes v of norm 1, v^T H^p v has mean tr(H^p) / d; its spread over probes says how near the mean must be.
    """
    params = {"w": normal(0, 3, 4), "head": normal(1, 4, 2)}
    batches = (normal(2, 2, 5, 3), normal(3, 2, 5, 2))

    def loss(x: Any, batch: Any) -> jax.Array:
        return jnp.mean(jnp.square(jnp.tanh(batch[0] @ x["w"]) @ x["head"] - batch[1]))

    flat, unravel = ravel_pytree(params)
    probes = 64

    def both(key: jax.Array) -> Any:
        found = spectral_density(
            lambda v: accumulated_hvp(loss, params, v, batches), key, params, num_probes=probes, num_points=2001
        )
        whole = lambda f: loss(unravel(f), jax.tree.map(lambda a: a.reshape(10, -1), batches))  # noqa: E731
        return found, jax.hessian(whole)(flat)

    found, H = jax.jit(both)(jax.random.key(0))
    values = np.linalg.eigvalsh(H)
    assert found.values.shape == (probes, flat.size)
    spacing = float(found.grid[1] - found.grid[0])
    assert float(found.density.sum()) * spacing == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-12)
    # All steps were made: every probe has found the extremes.
    np.testing.assert_allclose(found.grid[0], values[0] - 0.01, atol=1e-10)
    np.testing.assert_allclose(found.grid[-1], values[-1] + 0.01, atol=1e-10)
    for p in (1, 2, 3):
        samples = np.sum(np.asarray(found.weights) * np.asarray(found.values) ** p, axis=1)
        error = samples.std(ddof=1) / np.sqrt(probes)
        assert abs(samples.mean() - np.mean(values**p)) < 4 * error
        # Of the density itself: a Gaussian of variance s2 adds s2 to the second moment, and its ends are cut off.
        if p == 1:
            mean = float((found.grid * found.density).sum()) * spacing
            assert mean == pytest.approx(samples.mean(), abs=1e-3 * (values[-1] - values[0]))


def test_the_width_of_peaks_is_a_variance(x64: None) -> None:
    """One eigenvalue in the middle of the grid: the density is a Gaussian of variance 1e-5 times the width."""
    d = jnp.array([-10.0, 0.0, 10.0])
    found = jax.jit(lambda k: spectral_density(lambda v: d * v, k, d, num_points=20_001, sigma_squared=1e-3))(
        jax.random.key(0)
    )
    grid, density = np.asarray(found.grid), np.asarray(found.density)
    near = np.abs(grid) < 3
    mass = density[near].sum()
    variance = (density[near] * grid[near] ** 2).sum() / mass
    assert variance == pytest.approx(1e-3 * 20.02, rel=1e-3)


def test_narrow_peaks_do_not_fall_between_the_points_of_the_grid(x64: None) -> None:
    """Eigenvalues 0 and 1e6 of equal weight on a grid with a spacing of 1e4: each has its share of the density."""
    d = jnp.repeat(jnp.array([0.0, 3.3e5, 1e6]), 100)
    found = jax.jit(lambda k: spectral_density(lambda v: d * v, k, d, steps=3, num_points=101))(jax.random.key(0))
    density = np.asarray(found.density) / np.asarray(found.density).sum()
    weights = np.asarray(found.weights)[0]
    # Peaks as wide as the spacing. The middle one is inside of the grid; of the outer ones, whose middles are the ends
    # of the grid, one half and half of a point are left: sum over k >= 0 of exp(-k^2 / 2) is (sqrt(2 pi) + 1) / 2.
    inner, left = density[20:50].sum(), 0.5 + 0.5 / np.sqrt(2 * np.pi)
    assert inner == pytest.approx(weights[1] / (weights[1] + (weights[0] + weights[2]) * left), abs=1e-3)


def test_weights_are_those_of_a_symmetric_eigensolver(x64: None) -> None:
    """Without orthogonality the same eigenvalues return again and again; the eigenvectors of a symmetric solver are
    orthonormal all the same: weights add up to 1, and the first moments are exact. Of a general solver they are not."""
    d = jnp.concatenate([jnp.linspace(0.0, 1.0, 60), jnp.array([30.0, 50.0])])

    def both(key: jax.Array) -> Any:
        found = lanczos_tridiagonal(lambda v: d * v, key, d, 60, reorthogonalize=False)
        return found, ritz(found.alphas, found.betas[:-1])

    found, (values, weights) = jax.jit(both)(jax.random.key(0))
    assert found.basis is None
    assert float(weights.sum()) == pytest.approx(1, rel=1e-12)
    a, b = float(found.alphas[0]), float(found.betas[0])
    # (T e_1, e_1) and |T e_1|^2.
    assert float(weights @ values) == pytest.approx(a, rel=1e-12)
    assert float(weights @ values**2) == pytest.approx(a * a + b * b, rel=1e-12)
    assert (np.abs(np.asarray(values) - 50) < 1e-9).sum() > 1
    T = np.diag(found.alphas) + np.diag(found.betas[:-1], 1) + np.diag(found.betas[:-1], -1)
    assert abs(np.sum(np.linalg.eig(T)[1][0].real ** 2) - 1) > 1e-9


def test_one_rademacher_probe_has_the_trace_of_a_diagonal(x64: None) -> None:
    d = {"a": normal(0, 5), "b": normal(1, 2, 3)}
    hvp = lambda v: jax.tree.map(jnp.multiply, d, v)  # noqa: E731
    one, many = jax.jit(
        lambda k: (hessian_trace(hvp, k, d, num_probes=1), hessian_trace(hvp, k, d, num_probes=50, probe="gaussian"))
    )(jax.random.key(3))
    want = sum(float(x.sum()) for x in d.values())
    assert float(one.mean) == pytest.approx(want, rel=1e-13)
    assert np.isinf(one.standard_error)
    assert abs(float(many.mean) - want) < 4 * float(many.standard_error)
    # Var(z^T D z) = 2 |D|_F^2 of normal probes; of 50 samples the root of the variance is known to a tenth or so.
    square = sum(float(jnp.square(x).sum()) for x in d.values())
    assert float(many.standard_error) == pytest.approx(np.sqrt(2 * square / 50), rel=0.5)


def test_the_trace_does_not_stop_by_chance(x64: None) -> None:
    """All probes are made, and the error says how good the mean is. The rule that stops where two successive means
    differ by less than a thousandth stops early for some keys, far from the trace."""
    H = jnp.asarray(symmetric(20, 3))
    keys, n = 60, 100

    def one(key: jax.Array) -> Any:
        return hessian_trace(lambda v: H @ v, key, H[0], num_probes=n)

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), keys))
    samples, want = np.asarray(found.per_probe), float(jnp.trace(H))
    assert samples.shape == (keys, n)
    np.testing.assert_allclose(found.mean, samples.mean(1), rtol=1e-12)
    np.testing.assert_allclose(found.standard_error, samples.std(1, ddof=1) / np.sqrt(n), rtol=1e-12)
    # Var(z^T H z) = 2 sum of the squares off the diagonal, of random signs.
    off = np.asarray(H) - np.diag(np.diag(H))
    error = np.sqrt(2 * np.sum(off**2) / n)
    assert np.mean(found.standard_error) == pytest.approx(error, rel=0.1)
    np.testing.assert_array_less(np.abs(np.asarray(found.mean) - want), 4 * error)
    means = np.cumsum(samples, 1) / np.arange(1, n + 1)
    small = np.abs(np.diff(means)) < 1e-3 * np.abs(means[:, :-1])
    stops = np.where(small.any(1), small.argmax(1) + 1, n - 1)
    stopped = means[np.arange(keys), stops]
    assert stops.min() < 20 and np.abs(stopped - want).max() > 4 * error


def test_criteria_of_the_negative_part() -> None:
    """K_n = (sqrt(1 * 0.16) + sqrt(2 * 0.02)) / sqrt(8 * 0.5), over the probes a mean; a minimum has 0."""
    values = jnp.array([[-2.0, -1.0, 0.0, 8.0], [1.0, 2.0, 3.0, 4.0]])
    weights = jnp.array([[0.02, 0.16, 0.32, 0.5], [0.25, 0.25, 0.25, 0.25]])
    one, both = hessian_criteria(values[0], weights[0]), hessian_criteria(values, weights)
    np.testing.assert_allclose(np.array(one), [0.25, 0.6 / 2], rtol=1e-6)
    np.testing.assert_allclose(np.array(both), [0.125, 0.15], rtol=1e-6)
    np.testing.assert_allclose(np.array(hessian_criteria(values[0], weights[0], n=1.0)), [0.25, 0.2 / 4], rtol=1e-6)
    assert np.isinf(hessian_criteria(-values[1], weights[1])).all()
    # Where vectors are exhausted, zeros without weight follow: they are no eigenvalues.
    found = hessian_criteria(jnp.array([0.0, 1.0, -3.0, -4.0]), jnp.array([0.0, 0.0, 0.5, 0.5]))
    assert np.isinf(np.array(found)).all()


@pytest.mark.slow
def test_on_a_mesh(key: jax.Array) -> None:
    """Sharded leaves give the numbers of whole ones to some roundings of float32; vectors are sharded as they are."""
    x = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((16, 2)), jnp.float32), "b": jnp.ones(3)}

    def loss(x: Any, c: Any) -> jax.Array:
        return c * (jnp.sum(x["w"] ** 4) + jnp.sum(jnp.sin(x["b"])) * jnp.sum(x["w"]))

    def measure(p: Any) -> Any:
        product = lambda v: accumulated_hvp(loss, p, v, jnp.array([0.5, 1.5]))  # noqa: E731
        found = lanczos_tridiagonal(product, 0, p, 5)
        return found.alphas, hessian_trace(product, 1, p, num_probes=2).mean, found.basis

    run = jax.jit(measure)
    want = run(x)
    mesh = gk.parallel.make_mesh("fsdp=8")
    sharded = {"w": NamedSharding(mesh, P("fsdp")), "b": NamedSharding(mesh, P())}
    got = run(jax.tree.map(jax.device_put, x, sharded))
    size = float(jnp.abs(want[0]).max())
    np.testing.assert_allclose(got[0], want[0], atol=64 * 2.0**-24 * size)
    np.testing.assert_allclose(got[1], want[1], atol=64 * 2.0**-24 * 35 * size)
    assert got[2]["w"].sharding.shard_shape(got[2]["w"].shape) == (5, 2, 2)


def test_bad_input() -> None:
    x = jnp.ones(3)
    double = lambda v: 2 * v  # noqa: E731
    with pytest.raises(ValueError, match="steps must be at most the 3 parameters, got 4"):
        lanczos_tridiagonal(double, 0, x, 4)
    with pytest.raises(ValueError, match="has dtype int32"):
        spectral_density(double, 0, jnp.ones(3, jnp.int32))
    with pytest.raises(ValueError, match="num_probes must be an integer >= 1"):
        hessian_trace(double, 0, x, num_probes=0)
    with pytest.raises(ValueError, match="sigma_squared must be"):
        spectral_density(double, 0, x, sigma_squared=0.0)
    with pytest.raises(ValueError, match="one parameter at least"):
        hessian_trace(double, 0, {})
    with pytest.raises(ValueError, match="values and weights must have one shape"):
        hessian_criteria(x, jnp.ones(2))
    with pytest.raises(ValueError, match="has shape"):
        hessian_trace(lambda v: v[:2], 0, x)
