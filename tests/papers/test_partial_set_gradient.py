"""Gradients of sets from subsets: the value is exact, the mean over all subsets is the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk

X = np.random.default_rng(0).standard_normal((5, 3))


def encode(params: dict, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["w"])


def statistics(params: dict, h: jax.Array) -> dict:
    """Of attention: numerator and denominator, with a parameter that `finish` shares."""
    weights = jnp.exp(h @ params["q"])
    return {"sum": jnp.sum(weights[:, None] * h, axis=0), "count": jnp.sum(weights)}


def finish(params: dict, Z: dict, target: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(Z["sum"] / Z["count"][None] - target)) + jnp.sum(params["q"] * Z["sum"])


def full(params: dict, x: jax.Array, target: jax.Array) -> jax.Array:
    return finish(params, statistics(params, encode(params, x)), target)


def test_value_is_exact_and_the_gradient_unbiased(x64: None) -> None:
    params = {"w": jnp.eye(3)[:, :2] + 0.3, "q": jnp.array([0.5, -1.0])}
    target = jnp.ones(2)
    fn = gk.gradients.partial_set_gradient(encode, statistics, finish)
    own = jax.jit(
        jax.vmap(jax.value_and_grad(lambda p, key: fn(p, X, target, key=key, grad_size=2, chunk=2)), in_axes=(None, 0))
    )
    keys = jax.random.split(jax.random.key(0), 256)
    values, gradients = own(params, keys)
    want_value, want = jax.jit(jax.value_and_grad(full))(params, jnp.asarray(X), target)
    np.testing.assert_allclose(values, np.full(256, want_value), rtol=1e-13)
    # Every subset of two is drawn, and each has one gradient: their mean is the full one, without a sampling error.
    subsets = np.sort(np.asarray(jax.vmap(lambda key: jax.random.choice(key, 5, (2,), replace=False))(keys)), axis=1)
    first = [int(np.flatnonzero((subsets == [i, j]).all(1))[0]) for i in range(5) for j in range(i + 1, 5)]
    for name in params:
        mean = np.asarray(gradients[name])[first].mean(0)
        np.testing.assert_allclose(mean, want[name], atol=1e-13)


def test_a_subset_of_all_is_the_gradient(x64: None) -> None:
    params, target = {"w": jnp.eye(3)[:, :2], "q": jnp.array([0.5, -1.0])}, jnp.ones(2)
    fn = gk.gradients.partial_set_gradient(encode, statistics, finish)
    got = jax.grad(lambda p: fn(p, X, target, key=1, grad_size=5, chunk=3))(params)
    want = jax.grad(full)(params, jnp.asarray(X), target)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), got, want)


def test_parts_of_a_set_on_replicas_are_the_set(x64: None) -> None:
    params, target, x = {"w": jnp.eye(3)[:, :2], "q": jnp.array([0.5, -1.0])}, jnp.ones(2), jnp.asarray(X[:4])
    fn = gk.gradients.partial_set_gradient(encode, statistics, finish, axis_name="data")

    def own(x: jax.Array) -> tuple:
        value, g = jax.value_and_grad(lambda p: fn(p, x, target, key=1, grad_size=2))(params)
        return jax.lax.pmean((value, g), "data")

    value, got = jax.vmap(own, axis_name="data")(x.reshape(2, 2, 3))
    want_value, want = jax.value_and_grad(full)(params, x, target)
    np.testing.assert_allclose(value[0], want_value, rtol=1e-14)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-14), got, want)


def test_replace_forward_has_one_value_and_another_gradient() -> None:
    fn = lambda x: gk.gradients.replace_forward({"a": jnp.round(x)}, {"a": 3 * x}, 2.0)["a"]  # noqa: E731
    value, g = jax.value_and_grad(fn)(1.7)
    assert (float(value), float(g)) == (2.0, 6.0)
    with pytest.raises(ValueError, match="structure and shapes"):
        gk.gradients.replace_forward(jnp.zeros(2), jnp.zeros(3))


def test_sizes_outside_their_range_are_refused() -> None:
    fn = gk.gradients.partial_set_gradient(encode, statistics, finish)
    for x, how, match in (
        (X, {"key": 0, "grad_size": 6}, "grad_size"),
        (X, {"key": 0, "grad_size": 0}, "grad_size"),
        (X[:0], {"key": 0, "grad_size": 1}, "at least one"),
        (X, {"grad_size": 1}, "needs a random key"),
    ):
        with pytest.raises(ValueError, match=match):
            fn({}, x, **how)
