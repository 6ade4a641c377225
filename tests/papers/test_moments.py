"""Moments of the gradient over microbatches, and over replicas under vmap and shard_map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gradkit.gradients import GradientMoments, gradient_moments

pytestmark = pytest.mark.slow

rng = np.random.default_rng(0)
W = {"w": rng.standard_normal(3), "b": rng.standard_normal(())}
X = rng.standard_normal((8, 3))


def loss(p: dict, x: jax.Array) -> jax.Array:
    return jnp.mean((x @ p["w"] + p["b"]) ** 2)


def reference(parts: list[np.ndarray]) -> tuple[float, dict, dict, float]:
    grads, values = [], []
    for x in parts:
        r = x @ W["w"] + W["b"]
        values.append(np.mean(r**2))
        grads.append({"w": 2 * (r[:, None] * x).mean(0), "b": 2 * r.mean()})
    mean = {k: np.mean([g[k] for g in grads], axis=0) for k in W}
    squares = {k: np.mean([g[k] ** 2 for g in grads], axis=0) for k in W}
    return float(np.mean(values)), mean, squares, float(np.mean([sum((g[k] ** 2).sum() for k in W) for g in grads]))


def close(got: tuple, parts: list[np.ndarray]) -> None:
    value, moments = got
    assert isinstance(moments, GradientMoments)
    want = reference(parts)
    assert moments.count == len(parts) and moments.count.dtype == jnp.int32
    for a, b in zip((value, *moments[:3]), want, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), a, b)


def test_over_microbatches(x64: None) -> None:
    params = jax.tree.map(jnp.asarray, W)
    close(jax.jit(gradient_moments(loss, 4))(params, X), [X[i::4] for i in range(4)])
    value, moments = gradient_moments(loss, 4)(params, X)
    want = jax.value_and_grad(loss)(params, jnp.asarray(X))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), (value, moments.mean), want)


def test_over_replicas_under_vmap(x64: None) -> None:
    """Two replicas of two microbatches are four parts."""
    params = jax.tree.map(jnp.asarray, W)
    fn = gradient_moments(loss, 2, axis_name="data")
    got = jax.vmap(fn, in_axes=(None, 0), axis_name="data")(params, X.reshape(2, 4, 3))
    parts = [half[i::2] for half in (X[:4], X[4:]) for i in range(2)]
    close(jax.tree.map(lambda x: x[1], got), parts)


@pytest.mark.parametrize("check_vma", [False, True])
def test_over_replicas_in_shard_map(check_vma: bool, x64: None) -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    fn = gradient_moments(loss, axis_name="data")
    sharded = jax.shard_map(fn, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=check_vma)
    x = jax.device_put(jnp.asarray(X), NamedSharding(mesh, P("data")))
    close(jax.jit(sharded)(jax.tree.map(jnp.asarray, W), x), [X[2 * i : 2 * i + 2] for i in range(4)])


def test_identical_parts_have_no_variance(x64: None) -> None:
    _, moments = gradient_moments(loss, 2)(jax.tree.map(jnp.asarray, W), np.repeat(X[:2], 2, axis=0))
    for mean, squares in zip(jax.tree.leaves(moments.mean), jax.tree.leaves(moments.mean_of_squares), strict=True):
        np.testing.assert_allclose(squares - mean**2, 0, atol=1e-14)


def test_moments_are_float32_for_bfloat16_parameters_and_aux_is_stacked() -> None:
    """A variance is a small difference: bfloat16 would lose it."""
    fn = gradient_moments(lambda w, b: (jnp.mean(w * b), b), 2, has_aux=True)
    (value, aux), moments = fn(jnp.ones((), jnp.bfloat16), jnp.array([16.0, 16.125], jnp.bfloat16))
    assert value.dtype == jnp.bfloat16 and aux.shape == (2, 1)
    assert moments.mean.dtype == moments.mean_of_squares.dtype == moments.mean_sq_norm.dtype == jnp.float32
    assert float(moments.mean) == 16.0625
    np.testing.assert_allclose(moments.mean_of_squares - moments.mean**2, 0.0625**2, rtol=1e-2)


def test_complex_leaves_have_real_squares() -> None:
    _, moments = gradient_moments(lambda w, b: jnp.mean(b * jnp.real(w * (1 + 2j))), 2)(jnp.complex64(1), jnp.ones(4))
    assert moments.mean_of_squares.dtype == jnp.float32 and float(moments.mean_of_squares) == 5.0


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="microbatches must be an integer >= 1"):
        gradient_moments(loss, 0)
    with pytest.raises(ValueError, match="gradient_moments: a batch of 8 does not divide into 3"):
        gradient_moments(loss, 3)(jax.tree.map(jnp.asarray, W), X)
