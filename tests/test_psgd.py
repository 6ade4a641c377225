"""The kernels of PSGD's factors, against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.linalg.psgd import balanced, norm_lower_bound, refreshed, unwhiten, whiten, whiten_back


def factors(rng: np.random.Generator, shape: tuple[int, ...], diagonal: tuple[int, ...] = ()) -> list[np.ndarray]:
    return [
        1 + rng.random((d, 1))
        if a in diagonal
        else np.triu(rng.standard_normal((d, d)), 1) + np.diag(1 + rng.random(d))
        for a, d in enumerate(shape)
    ]


def full(qs: list[np.ndarray]) -> np.ndarray:
    """The Kronecker product, as a matrix on the flattened tensor."""
    whole = np.ones((1, 1))
    for q in qs:
        whole = np.kron(whole, np.diag(q[:, 0]) if q.shape[1] == 1 else q)
    return whole


SHAPES = [((4, 3), ()), ((4, 3), (0,)), ((2, 3, 4), (1,)), ((5,), (0,)), ((1, 3), (0,))]


@pytest.mark.parametrize(("shape", "diagonal"), SHAPES)
def test_products_and_a_step_against_the_whole_matrix(shape: tuple, diagonal: tuple, x64: None) -> None:
    rng = np.random.default_rng(0)
    qs, g, v = factors(rng, shape, diagonal), rng.standard_normal(shape), rng.standard_normal(shape)
    Q = full(qs)
    np.testing.assert_allclose(whiten(qs, g).ravel(), Q @ g.ravel(), rtol=1e-12)
    np.testing.assert_allclose(whiten_back(qs, whiten(qs, g)).ravel(), Q.T @ Q @ g.ravel(), rtol=1e-11)
    np.testing.assert_allclose(unwhiten(qs, v).ravel(), np.linalg.solve(Q.T, v.ravel()), rtol=1e-10)

    rate = 0.1
    damped = g + np.sqrt(np.finfo(np.float32).eps) * np.abs(g).mean() * v
    a, c = (Q @ damped.ravel()).reshape(shape), np.linalg.solve(Q.T, v.ravel()).reshape(shape)
    for axis, (q, new) in enumerate(zip(qs, refreshed(qs, g, v, jnp.asarray(rate)), strict=True)):
        others = [b for b in range(len(shape)) if b != axis]
        t1, t2 = (np.tensordot(x, x, (others, others)) for x in (a, c))
        if q.shape[1] == 1:
            t1, t2 = np.diag(t1)[:, None], np.diag(t2)[:, None]
            want = q - rate / np.abs(t1 + t2).max() * (t1 - t2) * q
        else:
            want = q - rate / np.asarray(norm_lower_bound(jnp.asarray(t1 + t2))) * np.triu(t1 - t2) @ q
        np.testing.assert_allclose(new, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["random", "deficient", "scaled", "zero"])
def test_the_bound_of_the_norm(kind: str, x64: None) -> None:
    """Never above the norm, exact for rank one, and at least that of one entry."""
    rng = np.random.default_rng(1)
    a = rng.standard_normal((6, {"random": 6, "deficient": 1, "scaled": 6, "zero": 6}[kind]))
    if kind == "scaled":
        a = np.logspace(0, -6, 6)[:, None] * a  # condition 1e12 of a a^T
    a = a @ a.T * (0 if kind == "zero" else 1)
    norm = np.linalg.norm(a, 2)
    for factor in (1.0, 1e-150):  # squares of entries would underflow
        bound = float(norm_lower_bound(jnp.asarray(factor * a)))
        assert factor * np.abs(a).max() * (1 - 1e-12) <= bound <= factor * norm * (1 + 1e-12)
        if kind == "deficient":
            np.testing.assert_allclose(bound, factor * norm, rtol=1e-12)


def test_balancing_changes_no_product(x64: None) -> None:
    rng = np.random.default_rng(2)
    qs = [1e3 * factors(rng, (3,))[0], *factors(rng, (4, 2))]
    even = [np.asarray(q) for q in balanced([jnp.asarray(q) for q in qs])]
    np.testing.assert_allclose(full(even), full(qs), rtol=1e-12)
    largest = [np.abs(q).max() for q in even]
    np.testing.assert_allclose(largest, largest[0], rtol=1e-12)


def test_float32_is_near_float64(key: jax.Array) -> None:
    rng = np.random.default_rng(3)
    qs, g, v = factors(rng, (4, 3)), rng.standard_normal((4, 3)), rng.standard_normal((4, 3))
    low = refreshed([jnp.asarray(q, jnp.float32) for q in qs], *(jnp.asarray(x, jnp.float32) for x in (g, v, 0.1)))
    with jax.enable_x64(True):
        high = refreshed([jnp.asarray(q) for q in qs], jnp.asarray(g), jnp.asarray(v), jnp.asarray(0.1))
    for x, y in zip(low, high, strict=True):
        assert x.dtype == jnp.float32
        # Some ten sums of up to 12 terms, and solves with factors of condition below 100.
        np.testing.assert_allclose(x, y, atol=100 * 12 * 2**-24)
