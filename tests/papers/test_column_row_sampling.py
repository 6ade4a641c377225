"""Column-row sampling, and winner-take-all (Liu et al., 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.layers import crs_linear, wta_crs_linear
from gradkit.layers.column_row_sampling import _picked, _probabilities
from tests.papers.replay import assert_equal, normal

# A few rows carry nearly everything, as in fine-tuning.
X = normal(0, 20, 3) * jnp.asarray(np.exp(-np.arange(20) / 3.0)).reshape(20, 1).astype(jnp.result_type(float))
KEYS = 2000


def gradients(layer: Any, x: jax.Array, g: jax.Array, norms: Any, **how: Any) -> Any:
    w = jnp.ones((3, 2), x.dtype)

    def one(key: jax.Array) -> jax.Array:
        return jax.vjp(lambda w: layer(x, w, key=key, grad_norms=norms, **how), w)[1](g)[0]

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), KEYS)))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("layer", [wta_crs_linear, crs_linear])
def test_the_mean_over_keys_is_the_exact_gradient(layer: Any, cached: bool, x64: None) -> None:
    """With a cache of the right norms and with none; to five standard errors."""
    x, g = X.astype(float), normal(1, 20, 2)
    norms = jnp.sqrt(jnp.sum(g**2, 1)) if cached else None
    errors = gradients(layer, x, g, norms, budget=0.4) - np.asarray(x.T @ g)
    assert (np.abs(errors.mean(0)) <= 5 * errors.std(0) / KEYS**0.5 + 1e-12).all()


@pytest.mark.parametrize("j", [0, 3, None])
def test_the_estimate_is_unbiased_by_enumeration(j: int | None, x64: None) -> None:
    """A draw m outside C, of probability p_m / (1 - P), is multiplied by (1 - P) / (k - j) / p_m: of k - j draws every
    row counts once in the mean. Also rows whose cached gradient is 0 can be drawn."""
    p = _probabilities(X.astype(float), jnp.zeros(20).at[3].set(2.0))
    assert (p > 0).all()
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-12)
    k = 8
    rows, factor = _picked(p, jax.random.key(0), k, j)
    order, rest = (
        np.argsort(-np.asarray(p)),
        1 - np.concatenate([[0], np.cumsum(np.sort(np.asarray(p))[::-1])[: k - 1]]),
    )
    best = int(np.argmin(rest / (k - np.arange(k)))) if j is None else j
    assert (np.asarray(rows)[:best] == order[:best]).all() and (np.asarray(factor)[:best] == 1).all()
    assert not set(np.asarray(rows)[best:]) & set(order[:best])
    np.testing.assert_allclose(
        factor[best:], rest[best] / (k - best) / np.asarray(p)[np.asarray(rows)[best:]], rtol=1e-9
    )


def test_winners_take_variance_away(x64: None) -> None:
    """P of the j winners is above j / k here: less variance than plain sampling at the same budget."""
    x, g = X.astype(float), normal(1, 20, 2)
    norms = jnp.sqrt(jnp.sum(g**2, 1))
    plain, winners = (gradients(f, x, g, norms, budget=0.4).var(0).sum() for f in (crs_linear, wta_crs_linear))
    assert winners < 0.5 * plain


@pytest.mark.parametrize("shape", [(5,), (5, 2)], ids=["per example", "per row"])
def test_norms_come_back_for_the_next_visit(shape: tuple[int, ...], x64: None) -> None:
    x, w, g = normal(0, 5, 2, 3), normal(1, 3, 4), normal(2, 5, 2, 4)
    layer = lambda x, w, norms, b: wta_crs_linear(x, w, b, key=jax.random.key(0), grad_norms=norms)  # noqa: E731
    both = jax.jit(lambda x, w, norms, b: (lambda y, back: (y, back(g)))(*jax.vjp(layer, x, w, norms, b)))
    y, (dx, _, seen, db) = both(x, w, jnp.zeros(shape), jnp.zeros(4))
    assert_equal(y, x @ w)
    assert_equal(dx, g @ w.T)
    assert_equal(db, g.sum((0, 1)))
    assert_equal(seen, jnp.sqrt(jnp.sum(g**2, axis=tuple(range(len(shape), 3)))))


def test_the_whole_budget_is_exact(x64: None) -> None:
    x, g, w = normal(0, 6, 3), normal(1, 6, 2), normal(2, 3, 2)
    for layer in (crs_linear, wta_crs_linear):
        (dw,) = jax.jit(lambda w, f=layer: jax.vjp(lambda w: f(x, w, key=jax.random.key(0), budget=1.0), w)[1](g))(w)
        assert_equal(dw, x.T @ g)
    zero = jnp.zeros((6, 3))
    (dw,) = jax.jit(lambda w: jax.vjp(lambda w: wta_crs_linear(zero, w, key=jax.random.key(0)), w)[1](g))(w)
    assert (dw == 0).all()


def test_bad_input() -> None:
    x, w, key = jnp.ones((4, 3)), jnp.ones((3, 2)), jax.random.key(0)
    for budget in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="budget must be in"):
            crs_linear(x, w, key=key, budget=budget)
    with pytest.raises(ValueError, match="grad_norms must have shape"):
        crs_linear(x, w, key=key, grad_norms=jnp.ones(3))
    with pytest.raises(ValueError, match=r"deterministic must be 'adaptive' or an integer in \[0, 2\)"):
        wta_crs_linear(x, w, key=key, budget=0.5, deterministic=2)
    with pytest.raises(ValueError, match="deterministic must be an integer"):
        wta_crs_linear(x, w, key=key, deterministic="all")
