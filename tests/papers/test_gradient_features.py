"""Features from projected gradients (Simoncini et al., 2024)."""

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.diagnostics import gradient_features
from tests.papers.replay import assert_equal, normal

N, D, H = 8, 5, 7


def network(seed: int = 0, hidden: int = H) -> dict[str, Any]:
    return {
        "first": {"bias": normal(seed, hidden), "kernel": normal(seed + 1, D, hidden)},
        "last": {"kernel": normal(seed + 2, hidden, 3)},
    }


def loss(params: Any, x: jax.Array) -> jax.Array:
    h = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    return -jnp.mean(jax.nn.log_softmax(h @ params["last"]["kernel"]))


def gradients(params: Any, x: jax.Array) -> np.ndarray:
    rows = jax.jit(jax.vmap(jax.grad(lambda p, x: loss(p, x[None])), in_axes=(None, 0)))(params, x)
    return np.concatenate([np.asarray(g).reshape(len(x), -1) for g in jax.tree.leaves(rows)], axis=1)


def test_a_dense_matrix_of_signs(x64: None) -> None:
    """The matrix of a key is read off linear losses, whose gradients are the unit vectors of leaves of these shapes."""
    params, x = network(), normal(9, N, D)
    leaves, structure = jax.tree.flatten(params)
    ends = np.cumsum([0, *(leaf.size for leaf in leaves)])

    def linear(params: Any, row: jax.Array) -> jax.Array:
        parts = [row[0, a:b].reshape(leaf.shape) for a, b, leaf in zip(ends, ends[1:], leaves, strict=False)]
        products = jax.tree.map(lambda x, p: jnp.sum(x * p), params, structure.unflatten(parts))
        return jnp.sum(jnp.stack(jax.tree.leaves(products)))

    project = lambda loss, x: gradient_features(loss, params, x, dim=6, key=3, normalize=False)  # noqa: E731
    R = np.asarray(jax.jit(lambda x: project(linear, x))(jnp.eye(ends[-1])))
    np.testing.assert_allclose(np.abs(R), 1 / np.sqrt(6), rtol=1e-14)
    z = gradients(params, x) @ R
    assert_equal(jax.jit(lambda x: project(loss, x))(x), z, rtol=1e-12, atol=1e-14)
    units = jax.jit(lambda x: gradient_features(loss, params, x, dim=6, key=3))(x)
    assert_equal(units, z / np.linalg.norm(z, axis=1, keepdims=True), rtol=1e-12, atol=1e-14)


def test_signs_of_every_block(monkeypatch: pytest.MonkeyPatch, x64: None) -> None:
    """Of a linear loss, whose gradient is the example: unit vectors give the rows of the matrix, in blocks of 4 of 10
    rows; they differ, and chunks of examples change nothing."""
    monkeypatch.setattr(sys.modules[gradient_features.__module__], "BLOCK", 4)
    linear = lambda w, x: jnp.mean(x @ w)  # noqa: E731
    row = lambda chunk: gradient_features(linear, jnp.zeros(10), jnp.eye(10), dim=64, key=0, chunk=chunk)  # noqa: E731
    rows = np.asarray(row(10))
    np.testing.assert_allclose(np.abs(rows), 1 / 8, rtol=1e-14)
    # Of 64 signs the agreement of two rows has the standard deviation 8: none is above 4.5 of them.
    assert np.abs(rows @ rows.T - np.eye(10)).max() < 4.5 * 8 / 64
    assert_equal(row(3), rows, rtol=1e-14)


def test_inner_products_are_kept() -> None:
    """Errors of |g| |h| / sqrt(dim) over 40 keys: root mean squares of 28 pairs at two lengths."""
    params, x = network(), jnp.asarray(np.asarray(normal(5, N, D)), jnp.float32)
    g = gradients(params, x)
    pairs = np.triu_indices(N, 1)
    want, size = (g @ g.T)[pairs], np.outer(np.linalg.norm(g, axis=1), np.linalg.norm(g, axis=1))[pairs]
    errors = {}
    for dim in (64, 256):
        project = functools.partial(gradient_features, loss, params, x, dim=dim, normalize=False)
        z = np.asarray(
            jax.jit(jax.vmap(lambda key, run=project: run(key=key)))(jax.random.split(jax.random.key(0), 40))
        )
        errors[dim] = (np.einsum("kid,kjd->kij", z, z)[:, *pairs] - want) / size * np.sqrt(dim)
    # The variance of <z, z'> is (|g|^2 |h|^2 + <g, h>^2 - 2 sum g^2 h^2) / dim: between 0 and twice the bound's.
    for each in errors.values():
        assert 0.3 < np.sqrt(np.mean(each**2)) < 1.5
        assert abs(np.mean(each)) < 0.3


def test_leaves_are_chosen() -> None:
    """The features of the last kernel alone do not see a change of the first layer's other leaves behind the same
    activations; another key has other signs."""
    params, x = network(), normal(5, N, D)
    of_last = lambda p, x: jnp.mean(jnp.square(x @ p["first"]["kernel"] @ p["last"]["kernel"]))  # noqa: E731
    run = jax.jit(
        lambda p, x, key: gradient_features(of_last, p, x, dim=16, key=key, leaves=gk.leaves.by_path("last/.*"))
    )
    here = run(params, x, jax.random.key(0))
    other = run({**params, "first": {**params["first"], "bias": 0 * params["first"]["bias"]}}, x, jax.random.key(0))
    np.testing.assert_array_equal(here, other)
    assert float(jnp.abs(here - run(params, x, jax.random.key(1))).max()) > 0.1


@pytest.mark.full_pipeline
def test_examples_on_eight_devices_exchange_nothing() -> None:
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    lies, whole = jax.NamedSharding(mesh, jax.P("data")), jax.NamedSharding(mesh, jax.P())
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=whole), network())
    x = jax.ShapeDtypeStruct((16, D), jnp.float32, sharding=lies)
    run = jax.jit(lambda p, x: gradient_features(loss, p, x, dim=4, key=0), out_shardings=lies)
    assert gk.parallel.collective_bytes(run.lower(params, x).compile()) == ()


def test_bad_input() -> None:
    params, x = network(), jnp.ones((2, D))
    for given, message in (
        ({"dim": 0}, "dim must be"),
        ({"chunk": 0}, "chunk must be"),
        ({"batch": {"a": x, "b": x[:1]}}, "batch must have leaves with one leading axis"),
        ({"leaves": gk.leaves.by_path("middle/.*")}, "leaves must select"),
    ):
        with pytest.raises(ValueError, match=message):
            call: dict[str, Any] = {"params": params, "batch": x, "dim": 4, "key": 0, **given}
            gradient_features(loss, **call)
