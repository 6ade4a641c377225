"""SAM and ASAM: closed forms on quadratics, reductions, invariance, replicas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.gradients import asam, sam

A = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]])
X = np.array([1.0, -2.0, 0.5])


def quadratic(x: dict) -> jax.Array:
    """x^T A x / 2, with x in two leaves."""
    v = jnp.concatenate([x["a"], x["b"].reshape(-1)])
    return v @ jnp.asarray(A) @ v / 2


def tree(v: np.ndarray) -> dict:
    return {"a": jnp.asarray(v[:1]), "b": jnp.asarray(v[1:]).reshape(2, 1)}


def flat(x: dict) -> np.ndarray:
    return np.concatenate([np.asarray(x["a"]), np.asarray(x["b"]).ravel()])


def test_quadratic(x64: None) -> None:
    """The gradient is A x + rho A^2 x / |A x|; the value is the one at x."""
    value, g = sam(quadratic, rho=0.3)(tree(X))
    np.testing.assert_allclose(value, X @ A @ X / 2, rtol=1e-14)
    np.testing.assert_allclose(flat(g), A @ X + 0.3 * A @ A @ X / np.linalg.norm(A @ X), rtol=1e-11)


@pytest.mark.parametrize("mask", [None, {"a": False, "b": True}, gk.leaves.by_rank(2)])
def test_adaptive_quadratic(mask, x64: None) -> None:
    T = np.abs(X) + 0.01
    if mask is not None:
        T[:1] = 1.0
    g = A @ X
    e = 0.3 * T**2 * g / np.linalg.norm(T * g)
    got = flat(asam(quadratic, rho=0.3, mask=mask)(tree(X))[1])
    np.testing.assert_allclose(got, A @ (X + e), rtol=1e-11)


def test_without_radius_and_without_sizes(x64: None) -> None:
    """rho = 0 is the plain gradient; with no leaf in the mask ASAM is SAM."""
    want = jax.value_and_grad(quadratic)(tree(X))
    for fn in (sam(quadratic, rho=0.0), asam(quadratic, rho=0.0)):
        jax.tree.map(np.testing.assert_array_equal, fn(tree(X)), want)
    np.testing.assert_array_equal(
        flat(asam(quadratic, rho=0.3, mask=False)(tree(X))[1]), flat(sam(quadratic, rho=0.3)(tree(X))[1])
    )


def test_adaptive_does_not_see_a_factor_moved_between_layers(x64: None) -> None:
    """loss(a b) at (a c, b / c): e scales with the parameters, so the product at the displaced point is the same."""

    def product(x: dict) -> jax.Array:
        return jnp.sum((x["a"] * x["b"] - 1.0) ** 2)

    a, b, c = jnp.array([0.5, -1.0]), jnp.array([2.0, 0.7]), 10.0
    g = asam(product, rho=0.2, eta=0.0)({"a": a, "b": b})[1]
    h = asam(product, rho=0.2, eta=0.0)({"a": c * a, "b": b / c})[1]
    np.testing.assert_allclose(h["a"] * c, g["a"], rtol=1e-10)
    np.testing.assert_allclose(h["b"] / c, g["b"], rtol=1e-10)


@pytest.mark.parametrize("source", [sam, asam])
def test_zero_gradient_is_an_ordinary_gradient(source) -> None:
    value, g = source(lambda x: jnp.sum(x**2))(jnp.zeros(3, jnp.bfloat16))
    assert float(value) == 0 and g.dtype == jnp.bfloat16 and (g == 0).all()


def test_traced_radius_equals_separate_runs(x64: None) -> None:
    rhos = jnp.array([0.1, 0.4])
    got = jax.vmap(lambda rho: sam(quadratic, rho=rho)(tree(X))[1]["b"])(rhos)
    for i, rho in enumerate([0.1, 0.4]):
        np.testing.assert_allclose(got[i], sam(quadratic, rho=rho)(tree(X))[1]["b"], rtol=1e-13)


def test_agrees_with_optax(x64: None) -> None:
    """Its transformation with the gradient of the same loss, away from a zero gradient."""
    tx = optax.contrib.sam(optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.3)), opaque_mode=True)
    x = tree(X)
    updates, _ = tx.update(jax.grad(quadratic)(x), tx.init(x), x, grad_fn=lambda p, _: jax.grad(quadratic)(p))
    g = sam(quadratic, rho=0.3)(x)[1]
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -0.1 * g, rtol=1e-11), updates, g)


def regression(w: jax.Array, batch: jax.Array) -> jax.Array:
    return jnp.mean((batch @ w - 1.0) ** 4)


@pytest.mark.parametrize("check_vma", [False, True])
def test_replicas_in_shard_map(check_vma: bool, x64: None) -> None:
    """With the axis: SAM of the whole batch. Without it under vmap: each replica climbs by itself."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    w, batch = jnp.asarray(X), jnp.asarray(np.random.default_rng(0).standard_normal((16, 3)))
    fn = sam(regression, rho=0.2, axis_name="data")
    shards = jax.device_put(batch, NamedSharding(mesh, P("data")))
    sharded = jax.shard_map(fn, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=check_vma)
    got, want = jax.jit(sharded)(w, shards), sam(regression, rho=0.2)(w, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got, want)


def test_replicas_under_vmap(x64: None) -> None:
    w, parts = jnp.asarray(X), jnp.asarray(np.random.default_rng(0).standard_normal((4, 4, 3)))
    together = jax.vmap(sam(regression, rho=0.2, axis_name="data"), in_axes=(None, 0), axis_name="data")(w, parts)
    want = sam(regression, rho=0.2)(w, parts.reshape(16, 3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-12), together, want)
    alone = jax.vmap(sam(regression, rho=0.2), in_axes=(None, 0))(w, parts)
    np.testing.assert_allclose(alone[1][2], sam(regression, rho=0.2)(w, parts[2])[1], rtol=1e-12)


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf"), "0.1"])
def test_bad_input(bad) -> None:
    for make in (lambda: sam(quadratic, rho=bad), lambda: asam(quadratic, rho=bad)):
        with pytest.raises(ValueError, match=r"rho must be .*\[0, inf\)"):
            make()
    with pytest.raises(ValueError, match=r"eta must be .*\[0, inf\)"):
        asam(quadratic, eta=bad)
