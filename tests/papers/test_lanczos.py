"""The spectrum of a Hessian, and the rate and momentum that follow (Granziol, Zohren, Roberts, 2020)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.diagnostics import batch_hessian_edge, lanczos, lanczos_hyperparameters, ritz
from tests.papers.replay import normal


def test_a_few_distinct_eigenvalues_are_found_exactly(x64: None, key: jax.Array) -> None:
    """After as many steps as there are; weights are the squared overlaps of the start; further steps add nothing."""
    diagonal = {"a": jnp.array([-2.0, 1.0, 1.0]), "b": jnp.array([[5.0, 1.0], [5.0, 5.0]])}
    hvp = lambda v: jax.tree.map(lambda d, x: d * x, diagonal, v)  # noqa: E731

    def both(key):
        # One step with the projection on an eigenspace measures the square of the start's part in it.
        def share(x):
            part = lambda v: jax.tree.map(lambda d, y: jnp.where(d == x, y, 0), diagonal, v)  # noqa: E731
            return lanczos(part, key, diagonal, 1)[0]

        shares = jax.vmap(share)(jnp.array([-2.0, 1.0, 5.0]))[:, 0]
        return shares, ritz(*lanczos(hvp, key, diagonal, 3)), ritz(*lanczos(hvp, key, diagonal, 6))

    shares, found, more = jax.jit(both)(key)
    np.testing.assert_allclose(found.values, [-2.0, 1.0, 5.0], rtol=1e-12)
    np.testing.assert_allclose(found.weights, shares, rtol=1e-10)
    np.testing.assert_allclose(more.values[more.weights > 1e-20], [-2.0, 1.0, 5.0], rtol=1e-12)
    np.testing.assert_allclose(more.values[more.weights <= 1e-20], 0.0, atol=1e-12)


@pytest.mark.parametrize("reorthogonalize", [True, False])
@pytest.mark.parametrize("probe", ["gaussian", "rademacher"])
def test_quadrature(reorthogonalize: bool, probe: str, x64: None, key: jax.Array) -> None:
    """k steps integrate polynomials of degree 2 k - 1 over the density of the start exactly: v^T H^p v."""
    A = normal(0, 12, 12)
    A = (A + A.T) / 10

    def both(key):
        found = ritz(*lanczos(lambda v: A @ v, key, A[0], 4, reorthogonalize=reorthogonalize, probe=probe))
        (a, _) = lanczos(lambda v: jnp.linalg.matrix_power(A, 7) @ v, key, A[0], 1, probe=probe)
        return found.weights @ found.values**7, a[0], jnp.sum(found.weights)

    got, want, total = jax.jit(both)(key)
    np.testing.assert_allclose(np.array([got / want, total]), 1, rtol=1e-10)


def test_edges_of_a_large_spectrum(x64: None, key: jax.Array) -> None:
    """Twenty steps find two outliers of 300 to many digits, and without orthogonality the largest all the same."""
    d = jnp.concatenate([jnp.linspace(0.1, 1.0, 298), jnp.array([6.0, 10.0])])
    for careful in (True, False):
        values, _ = jax.jit(lambda k, c=careful: ritz(*lanczos(lambda v: d * v, k, d, 20, reorthogonalize=c)))(key)
        np.testing.assert_allclose(values[-1], 10.0, rtol=1e-9)
        if careful:
            np.testing.assert_allclose(values[-2], 6.0, rtol=1e-9)
            assert 0.1 - 1e-12 <= values[0] < 0.12


@pytest.mark.slow
def test_a_hessian_on_a_mesh(key: jax.Array) -> None:
    """Of a loss, with leaves cut over devices; float32 finds the values to some roundings of the largest."""
    x = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((16, 2)), jnp.float32), "b": jnp.ones(3)}

    def hvp(p):
        loss = lambda x: jnp.sum(x["w"] ** 4) + jnp.sum(jnp.sin(x["b"])) * jnp.sum(x["w"])  # noqa: E731
        return lambda v: jax.jvp(jax.grad(loss), (p,), (v,))[1]

    measure = jax.jit(lambda p, k: ritz(*lanczos(hvp(p), k, p, 6)).values)
    want = measure(x, key)
    mesh = gk.parallel.make_mesh("fsdp=8")
    lies = {"w": NamedSharding(mesh, P("fsdp")), "b": NamedSharding(mesh, P())}
    got = measure(jax.tree.map(jax.device_put, x, lies), key)
    np.testing.assert_allclose(got, want, atol=64 * 2.0**-24 * float(jnp.abs(want).max()))


def test_heavy_ball_contracts_at_the_root_of_momentum(x64: None) -> None:
    """On every eigenvalue in [l, L] the iteration matrix has spectral radius sqrt(momentum), and above outside."""
    rate, m = (float(x) for x in lanczos_hyperparameters(jnp.array([0.3, 2.0, 30.0, -1.0, 0.0])))

    def radius(h: float) -> float:
        return np.abs(np.linalg.eigvals(np.array([[1 + m - rate * h, -m], [1, 0]]))).max()

    # At both ends the eigenvalues coincide, and are known to the root of a rounding.
    for h in (0.3, 1.0, 10.0, 30.0):
        assert radius(h) == pytest.approx(np.sqrt(m), abs=1e-7)
    assert radius(0.2) > np.sqrt(m) + 1e-3 and radius(32.0) > np.sqrt(m) + 1e-3


def test_lower_edges(x64: None) -> None:
    values = jnp.array([3.0, 1e-18, -0.2, 0.5])
    total = 3**0.5 + 0.5**0.5
    want = [(2 / total) ** 2, (1 - 2 * 0.5**0.5 / total) ** 2]
    np.testing.assert_allclose(np.array(lanczos_hyperparameters(values)), want, rtol=1e-12)
    np.testing.assert_allclose(lanczos_hyperparameters(values, lower=3.0), [1 / 3, 0.0], atol=1e-15)
    assert lanczos_hyperparameters(values, lower=0.1).momentum > lanczos_hyperparameters(values).momentum
    assert jnp.isnan(lanczos_hyperparameters(jnp.array([-1.0, 0.0])).learning_rate)


def test_edge_of_a_batch_hessian() -> None:
    """A Wigner matrix plus one outlier: the largest eigenvalue of random symmetric matrices of 400 entries a side."""
    n, sigma, batch, N = 400, 0.5, 50, 150
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((n, n))
    noise = (noise + noise.T) / np.sqrt(2) * sigma * np.sqrt(1 / batch - 1 / N)
    for lam in (0.5, 4.0):
        H = noise.copy()
        H[0, 0] += lam
        # Fluctuations of the edge are of the order n^(-2/3), of an outlier sigma / sqrt(batch).
        want = float(batch_hessian_edge(lam, sigma, n, batch, N))
        assert np.linalg.eigvalsh(H)[-1] == pytest.approx(want, abs=4 * sigma / np.sqrt(batch))
    # The full batch has no noise, and the two branches meet.
    assert batch_hessian_edge(2.0, sigma, n, N, N) == 2.0
    edge = np.sqrt(400 / 100)
    np.testing.assert_allclose(batch_hessian_edge(jnp.array([edge, edge * 1.0001]), 1.0, 400, 100), 2 * edge, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: lanczos(3.0, k, jnp.ones(2), 1), "hvp_fn must be callable"),
        (lambda k: lanczos(lambda v: v, k, jnp.ones(2), 0), "steps must be"),
        (lambda k: lanczos(lambda v: v[:1], k, jnp.ones(2), 1), "has shape"),
        (lambda k: lanczos(lambda v: v, k, jnp.ones(2, complex), 1), "is complex"),
        (lambda k: lanczos(lambda v: v, k, jnp.ones(2), 1, probe="ones"), "probe must be"),
        (lambda k: ritz(jnp.ones(2), jnp.ones(2)), "alphas and betas"),
        (lambda k: lanczos_hyperparameters(jnp.ones(2), lower=0.0), "lower must be in"),
        (lambda k: lanczos_hyperparameters(jnp.ones((2, 2))), "values must be"),
        (lambda k: batch_hessian_edge(1.0, -1.0, 1, 1), "sigma must be in"),
        (lambda k: batch_hessian_edge(1.0, 1.0, 1, 9, 8), "at most num_examples"),
    ],
)
def test_bad_input(call, message: str, key: jax.Array) -> None:
    with pytest.raises(ValueError, match=message):
        call(key)
