"""The norm test, the inner product test and the orthogonality test (Lau, Liu, Kolar, 2024)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.batches import example_variance, inner_product_test, norm_test, orthogonality_test
from gradkit.gradients import gradient_moments
from tests.papers.replay import normal

BIG = 10**6


def trees(n: int = 7) -> tuple[dict, np.ndarray]:
    """Example gradients over two leaves, and the same as rows."""
    grads = {"a": normal(0, n, 3) + 0.5, "b": 2 * normal(1, n, 2, 2) - 0.3}
    return grads, np.concatenate([np.asarray(g).reshape(n, -1) for g in grads.values()], axis=1)


def test_against_the_definitions(x64: None) -> None:
    """Over all leaves as one vector, with thresholds so small that the number of examples has six digits."""
    grads, rows = trees()
    g = rows.mean(0)
    square = g @ g
    along = rows @ g
    want = {
        "norm": rows.var(0, ddof=1).sum() / (1e-5 * square),
        "inner": along.var(ddof=1) / (1e-5 * square**2),
        "orthogonal": (rows - along[:, None] * g / square).var(0, ddof=1).sum() / (1e-5 * square),
    }
    mean, var = ({k: f(x) for k, x in grads.items()} for f in (lambda x: x.mean(0), lambda x: x.var(0, ddof=1)))
    eps = float(np.sqrt(1e-5))
    got = {
        "norm": jax.jit(lambda m, v: norm_test(m, v, batch_size=7, eta=eps))(mean, var),
        "inner": jax.jit(lambda g: inner_product_test(g, theta=eps))(grads),
        "orthogonal": jax.jit(lambda g: orthogonality_test(g, nu=eps))(grads),
    }
    assert {k: int(v) for k, v in got.items()} == {k: int(np.ceil(v)) for k, v in want.items()}
    assert all(v.dtype == jnp.int32 for v in got.values())
    # The same as one number, and with gradients of parts of 4 examples: four times the variance.
    assert norm_test(mean, sum(v.sum() for v in var.values()), batch_size=7, eta=eps) == got["norm"]
    assert int(orthogonality_test(grads, nu=eps, examples=4)) == int(np.ceil(4 * want["orthogonal"]))


def test_identical_examples_ask_for_no_more() -> None:
    same = {"a": jnp.ones((5, 3)), "b": jnp.full((5,), -2.0)}
    mean = jax.tree.map(lambda x: x[0], same)
    assert norm_test(mean, jax.tree.map(jnp.zeros_like, mean), batch_size=64) == 64
    assert inner_product_test(same) == orthogonality_test(same) == 5
    assert inner_product_test(same, batch_size=64) == orthogonality_test(same, batch_size=64) == 64


def test_the_batch_of_isotropic_noise(x64: None) -> None:
    """N(G, sigma^2 I) in P dimensions: P sigma^2 / (eta^2 |G|^2) examples."""
    P, n, sigma, eta = 50, 4000, 3.0, 0.5
    G = normal(0, P)
    rows = G[None] + sigma * normal(1, n, P)
    want = P * sigma**2 / (eta**2 * float(G @ G))
    got = norm_test(rows.mean(0), rows.var(0, ddof=1), batch_size=2, eta=eta)
    # |g|^2 is known to 2 sigma |G| / sqrt(n) and has P sigma^2 / n too much; the variance to sqrt(2 / (n P)).
    length = float(jnp.linalg.norm(G))
    error = 4 * 2 * sigma / (length * np.sqrt(n)) + P * sigma**2 / (n * length**2) + 4 * np.sqrt(2 / (n * P))
    assert abs(int(got) / want - 1) < error


def test_what_is_found_passes_the_test(x64: None) -> None:
    """With the batch that is asked for, variance of the mean / |g|^2 is eta^2, and with one example fewer above it."""
    grads, rows = trees()
    g, variance, eta = rows.mean(0), rows.var(0, ddof=1).sum(), 0.4
    k = int(norm_test(jnp.asarray(g), jnp.asarray(rows.var(0, ddof=1)), batch_size=2, eta=eta))
    assert variance / k <= eta**2 * g @ g < variance / (k - 1)
    # Scaling the loss changes nothing.
    thrice = jax.tree.map(lambda x: 3 * x, grads)
    assert inner_product_test(grads, batch_size=2) == inner_product_test(thrice, batch_size=2)


def test_no_gradient_and_no_number() -> None:
    zero = {"w": jnp.zeros(3)}
    one = {"w": jnp.ones(3)}
    for variance in (one, zero):
        assert norm_test(zero, variance, batch_size=8, max_batch=BIG) == BIG
    opposite = {"w": jnp.array([[1.0], [-1.0]])}
    assert inner_product_test(opposite, max_batch=BIG) == BIG == orthogonality_test(opposite, max_batch=BIG)
    # Beyond any int32, and a batch that is past the cap already.
    assert norm_test(one, {"w": jnp.full(3, 1e30)}, batch_size=8) == 2**31 - 1
    assert norm_test(one, one, batch_size=64, max_batch=32) == 64
    for bad in (jnp.nan, jnp.inf):
        assert norm_test({"w": jnp.array([bad])}, {"w": jnp.array([bad])}, batch_size=8) == 8


def test_the_variance_of_one_example_from_parts(x64: None) -> None:
    """In expectation: parts of n examples have a variance n times smaller."""
    x = normal(0, 64, 3)
    for microbatches in (8, 64):
        fn = gradient_moments(lambda w, x: jnp.mean(x @ w), microbatches)
        _, moments = fn(jnp.zeros(3), x)
        parts = np.stack([np.asarray(x)[i::microbatches].mean(0) for i in range(microbatches)])
        want = 64 / microbatches * parts.var(0, ddof=1).sum()
        np.testing.assert_allclose(example_variance(moments, 64 // microbatches), want, rtol=1e-12)
    _, alone = gradient_moments(lambda w, x: jnp.mean(x @ w), 1)(jnp.zeros(3), x)
    assert jnp.isnan(example_variance(alone, 64))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: norm_test(g[0], g[0], batch_size=1), "batch_size must be in"),
        (lambda g: norm_test(g[0], g[0], batch_size=2, eta=0.0), "eta must be in"),
        (lambda g: norm_test(g[0], g[0], batch_size=2, max_batch=1), "max_batch must be"),
        (lambda g: norm_test(g[0].astype(complex), g[0], batch_size=2), "is complex"),
        (lambda g: inner_product_test(g, theta=float("nan")), "theta must be in"),
        (lambda g: orthogonality_test(g, nu=-1.0), "nu must be in"),
        (lambda g: orthogonality_test(g[:1]), "two or more examples"),
        (lambda g: orthogonality_test({"a": g, "b": g[:2]}), "two or more examples"),
        (lambda g: inner_product_test({"a": g, "b": g[0, 0]}), "two or more examples"),
        (lambda g: inner_product_test(g, examples=0), "examples must be"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((3, 2)))
