"""Linear layers that remember a random projection (Bershatsky et al., 2022)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.layers import randomized_linear
from tests.papers.replay import assert_equal, normal


def layer(kind: str, p: int, x: jax.Array, g: jax.Array, w: jax.Array) -> Any:
    """key -> gradients of x, kernel and bias when g comes back."""

    def grads(key: jax.Array) -> Any:
        f = lambda x, w, b: randomized_linear(x, w, b, key=key, proj_dim=p, kind=kind)  # noqa: E731
        return jax.vjp(f, x, w, jnp.zeros(w.shape[1]))[1](g)

    return grads


@pytest.mark.parametrize("kind", ["gaussian", "rademacher", "dct"])
def test_the_mean_over_keys_is_the_exact_gradient(kind: str, x64: None) -> None:
    """The slope of the mean on the truth is 1, to five standard errors of 4000 keys; a factor p b for b / p, as in the
    public code, would make it 64 here. The rest of the backward pass is exact for every key."""
    b, p, keys = 16, 8, jax.random.split(jax.random.key(0), 4000)
    x, g, w = normal(0, b, 3), normal(1, b, 2), normal(2, 3, 2)
    dx, dw, db = jax.jit(jax.vmap(layer(kind, p, x, g, w)))(keys)
    truth = np.asarray(x.T @ g)
    slopes = np.sum(np.asarray(dw) * truth, (1, 2)) / np.sum(truth**2)
    assert abs(slopes.mean() - 1) < 5 * slopes.std() / len(keys) ** 0.5
    errors = np.asarray(dw) - truth
    assert (np.abs(errors.mean(0)) < 5 * errors.std(0) / len(keys) ** 0.5).all()
    assert_equal(dx[17], g @ w.T)
    assert_equal(db[17], g.sum(0))


def test_the_variance_falls_as_one_over_p(x64: None) -> None:
    """Of the Gaussian kind, exactly: p times the variance is |x_a|^2 |g_c|^2 + (x_a . g_c)^2. Of 4000 keys the estimate
    has a relative error of sqrt((kurtosis - 1) / 4000) per entry, some 0.03 for products of sums of squares."""
    b, keys = 16, jax.random.split(jax.random.key(0), 4000)
    x, g, w = normal(0, b, 3), normal(1, b, 2), normal(2, 3, 2)
    want = np.sum(np.sum(np.square(x), 0)[:, None] * np.sum(np.square(g), 0)[None] + np.square(x.T @ g))
    for p in (2, 8):
        dw = jax.jit(jax.vmap(layer("gaussian", p, x, g, w)))(keys)[1]
        np.testing.assert_allclose(p * np.var(np.asarray(dw), 0).sum(), want, rtol=0.15)


def test_all_rows_are_exact_and_any_shape_of_rows(x64: None) -> None:
    x, w = normal(0, 2, 4, 3), normal(1, 3, 2)
    loss = lambda w, **how: jnp.sum(jnp.tanh(randomized_linear(x, w, key=jax.random.key(0), **how)))  # noqa: E731
    want = jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(w)
    for how in ({"ratio": 1.0}, {"proj_dim": 9}, {"ratio": 3.0}):
        assert_equal(jax.grad(loss)(w, **how), want)
    assert loss(w, ratio=0.01) == loss(w, ratio=1.0)


def test_what_is_kept_for_the_backward_pass_is_p_rows() -> None:
    """Residuals of the forward pass: p / b of the input, the kernel and the key."""
    x, w = jnp.ones((1024, 8)), jnp.ones((8, 4))
    f = lambda w: randomized_linear(x * w[0, 0], w, key=jax.random.key(0), proj_dim=16)  # noqa: E731
    kept = jax.tree.leaves(jax.eval_shape(lambda w: jax.vjp(f, w)[1], w))
    largest = [r.size for r in kept if r.shape != x.shape]  # x itself is an input of the layer before
    assert max(largest) <= 16 * 8


def test_bad_input() -> None:
    x, w, key = jnp.ones((4, 3)), jnp.ones((3, 2)), jax.random.key(0)
    for how in ({}, {"proj_dim": 2, "ratio": 0.5}):
        with pytest.raises(ValueError, match="give one of proj_dim and ratio"):
            randomized_linear(x, w, key=key, **how)
    with pytest.raises(ValueError, match="proj_dim must be"):
        randomized_linear(x, w, key=key, proj_dim=0)
    with pytest.raises(ValueError, match="ratio must be"):
        randomized_linear(x, w, key=key, ratio=float("nan"))
    with pytest.raises(ValueError, match="kind must be one of"):
        randomized_linear(x, w, key=key, ratio=0.5, kind="dft")
