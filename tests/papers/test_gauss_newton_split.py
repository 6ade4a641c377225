"""Products with the Hessian, over microbatches, and its two parts (Sagun et al., 2017)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from gradkit.diagnostics import accumulated_hvp, gauss_newton_split, hvp
from tests.papers.replay import assert_equal, normal

SIZES = {"w": (3, 4), "b": (4,), "head": (4, 2)}


def network() -> tuple[Any, Any]:
    """A network of 24 parameters, and six examples."""
    params = {name: normal(i, *shape) for i, (name, shape) in enumerate(SIZES.items())}
    return params, (normal(7, 6, 3), normal(8, 6, 2))


def model(x: Any, inputs: jax.Array) -> jax.Array:
    return jnp.tanh(inputs @ x["w"] + x["b"][None]) @ x["head"]


def of_outputs(z: jax.Array, y: jax.Array) -> jax.Array:
    """Convex in the outputs."""
    return jnp.mean(jnp.log1p(jnp.exp(z)) * 3 + jnp.square(z - y))


def loss(x: Any, batch: Any) -> jax.Array:
    return of_outputs(model(x, batch[0]), batch[1])


def test_products_are_those_of_the_dense_hessian(x64: None) -> None:
    """Of a batch, and of three unequal microbatches that together are it: weights are their sizes."""
    x, batch = network()
    flat, unravel = ravel_pytree(x)
    v = normal(9, flat.size)
    tree = unravel(v)
    H = np.asarray(jax.jit(jax.hessian(lambda f: loss(unravel(f), batch)))(flat))
    got = jax.jit(lambda x, v: hvp(loss, x, v, batch))(x, tree)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, x)
    assert_equal(ravel_pytree(got)[0], H @ np.asarray(v), 1e-11)

    # Two microbatches of three examples; each example counts as often as in the batch.
    halves = jax.tree.map(lambda a: a.reshape(2, 3, *a.shape[1:]), batch)
    assert_equal(jax.jit(lambda x, v: accumulated_hvp(loss, x, v, halves))(x, tree), got, 1e-11)
    # The first half three times: weights 3 and 1 are the batch of twelve with it repeated.
    repeated = jax.tree.map(lambda a: jnp.concatenate([a[:3], a[:3], a[:3], a[3:]]), batch)
    want = hvp(loss, x, tree, repeated)
    assert_equal(accumulated_hvp(loss, x, tree, halves, weights=jnp.array([3, 1])), want, 1e-11)


def test_the_operator_is_the_same_at_every_call(x64: None) -> None:
    """And symmetric: <u, H v> = <v, H u>."""
    x, batch = network()
    halves = jax.tree.map(lambda a: a.reshape(2, 3, *a.shape[1:]), batch)
    product = jax.jit(lambda v: accumulated_hvp(loss, x, v, halves))
    u, v = (jax.tree.map(lambda p, i=i: normal(i, *p.shape), x) for i in (20, 30))
    first, second = product(v), product(v)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    dot = lambda a, b: float(jnp.dot(ravel_pytree(a)[0], ravel_pytree(b)[0]))  # noqa: E731
    assert dot(u, first) == pytest.approx(dot(v, product(u)), rel=1e-11)


def test_gauss_newton_and_the_rest_are_the_hessian(x64: None) -> None:
    """G is J^T (hessian of the loss in the outputs) J: positive semidefinite, of rank examples x outputs at most."""
    x, (inputs, y) = network()
    flat, unravel = ravel_pytree(x)

    def column(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        parts = gauss_newton_split(model, of_outputs, x, unravel(v), inputs[:2], y[:2])
        return ravel_pytree(parts.gauss_newton)[0], ravel_pytree(parts.residual)[0]

    def dense() -> tuple[Any, ...]:
        G, R = jax.vmap(column)(jnp.eye(flat.size))
        f = lambda f: model(unravel(f), inputs[:2]).ravel()  # noqa: E731
        J = jax.jacobian(f)(flat)
        bent = jax.hessian(lambda z: of_outputs(z.reshape(2, 2), y[:2]))(f(flat))
        H = jax.hessian(lambda f: loss(unravel(f), (inputs[:2], y[:2])))(flat)
        return G, R, J, bent, H

    G, R, J, bent, H = map(np.asarray, jax.jit(dense)())
    np.testing.assert_allclose(G, J.T @ bent @ J, atol=1e-13)
    np.testing.assert_allclose(G + R, H, atol=1e-13)
    values = np.linalg.eigvalsh(G)
    assert values[0] > -1e-13 and (values > 1e-10).sum() == 4 < flat.size
    assert np.abs(R).max() > 1e-3


def test_the_rest_vanishes_where_the_loss_is_stationary_in_the_outputs(x64: None) -> None:
    x, (inputs, _) = network()
    v = jax.tree.map(jnp.ones_like, x)
    square = lambda z, y: jnp.sum(jnp.square(z - y))  # noqa: E731
    parts = gauss_newton_split(model, square, x, v, inputs, model(x, inputs))
    assert all(not np.any(r) for r in jax.tree.leaves(parts.residual))
    assert any(np.any(g) for g in jax.tree.leaves(parts.gauss_newton))


def test_narrow_parameters() -> None:
    """bfloat16: products leave in it, and many small ones are summed in float32."""
    x = {"w": jnp.ones(2, jnp.bfloat16)}
    f = lambda x, c: jnp.sum(0.5 * c * jnp.square(x["w"].astype(jnp.float32)))  # noqa: E731
    batches = jnp.full(300, 1.0).at[0].set(301.0)
    got = accumulated_hvp(f, x, {"w": jnp.ones(2, jnp.bfloat16)}, batches)["w"]
    assert got.dtype == jnp.bfloat16
    # The mean is 2; in bfloat16 the shares of 1 / 300 beside 1 would be lost.
    np.testing.assert_array_equal(np.asarray(got, np.float32), 2.0)


def test_bad_input() -> None:
    x = jnp.ones(2)
    f = lambda x, c: jnp.sum(c * x**2)  # noqa: E731
    with pytest.raises(ValueError, match="loss_fn must be callable"):
        hvp(1.0, x, x)
    with pytest.raises(ValueError, match="has dtype int32"):
        hvp(f, jnp.ones(2, jnp.int32), x, 1.0)
    with pytest.raises(ValueError, match="has shape"):
        hvp(f, x, jnp.ones(3), 1.0)
    with pytest.raises(ValueError, match="batches must have the same leading axis"):
        accumulated_hvp(f, x, x, (jnp.ones(2), jnp.ones(3)))
    with pytest.raises(ValueError, match=r"weights must have shape \(2,\)"):
        accumulated_hvp(f, x, x, jnp.ones(2), weights=jnp.ones(3))
    with pytest.raises(ValueError, match="model_fn must be callable"):
        gauss_newton_split(None, f, x, x, x)
