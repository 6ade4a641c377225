"""Gradient cache (Gao et al., 2021)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from gradkit.gradients import grad_cache
from gradkit.parallel import tiled_contrastive_loss
from tests.papers.replay import assert_equal, normal

pytestmark = pytest.mark.slow

B = 10


def params() -> dict[str, jax.Array]:
    return {"query": normal(0, 3, 4), "key": normal(1, 2, 4), "temperature": jnp.asarray(0.3)}


def batch() -> dict[str, jax.Array]:
    kept = np.random.default_rng(4).random((B, 4)) < 0.7
    return {"x": normal(2, B, 3), "y": normal(3, B, 2), "kept": jnp.asarray(kept, float)}


def encode(p: Any, b: Any, key: Any = None) -> tuple[jax.Array, jax.Array]:
    """Two towers, with dropout of each example's own, and noise of the chunk's where a key comes."""
    q = jnp.tanh(b["x"] @ p["query"]) * b["kept"] * jnp.exp(p["temperature"])
    noise = 0.0 if key is None else 0.1 * jax.random.normal(key, q.shape, q.dtype)
    return q + noise * q, jnp.sin(b["y"] @ p["key"])


def contrast(reps: tuple[jax.Array, jax.Array], scale: Any = 1.0) -> jax.Array:
    """A loss in which every example meets every other."""
    z = scale * reps[0] @ reps[1].T
    return jnp.mean(jax.nn.logsumexp(z, axis=1) - jnp.diag(z))


def whole(p: Any, b: Any, scale: Any = 1.0) -> jax.Array:
    return contrast(encode(p, b), scale)


def test_any_chunk_size_gives_the_gradient_of_the_whole_batch(x64: None) -> None:
    """Chunks that divide the batch, that do not, and one larger than it; further arguments reach the loss."""
    want = jax.jit(jax.value_and_grad(whole))(params(), batch(), 2.0)
    for chunk in (4, 5, 32):
        assert_equal(jax.jit(grad_cache(encode, contrast, chunk))(params(), batch(), None, 2.0), want)


def test_both_passes_draw_the_same_numbers(x64: None) -> None:
    """One key per chunk: chunk i of K has examples i, i + K, ... (the last one again, where it is not full)."""
    key, chunk = jax.random.key(7, impl="unsafe_rbg"), 4
    K = -(-B // chunk)

    def direct(p: Any) -> jax.Array:
        where = np.minimum(np.arange(K * chunk), B - 1).reshape(chunk, K)
        keys = jax.random.split(key, K)
        parts = [encode(p, jax.tree.map(lambda x, i=i: x[where[:, i]], batch()), keys[i]) for i in range(K)]
        return contrast(tuple(jnp.stack(r, axis=1).reshape(K * chunk, 4)[:B] for r in zip(*parts, strict=True)))

    got = jax.jit(grad_cache(encode, contrast, chunk))(params(), batch(), key)
    assert_equal(got, jax.jit(jax.value_and_grad(direct))(params()))
    assert abs(got[0] - whole(params(), batch())) > 1e-4


def test_over_devices_is_one_device(x64: None) -> None:
    """Five members with two examples each compare all ten: under `vmap`, and in `shard_map` with its checks and not."""
    want = jax.jit(jax.value_and_grad(whole))(params(), batch())
    fn = grad_cache(encode, contrast, 1, axis_name="data")
    parts = jax.tree.map(lambda x: x.reshape(5, 2, *x.shape[1:]), batch())
    mapped = jax.jit(jax.vmap(fn, in_axes=(None, 0), axis_name="data"))(params(), parts)
    assert_equal(jax.tree.map(lambda x: x[3], mapped), want)
    mesh = jax.make_mesh((5,), ("data",), (AxisType.Auto,), devices=jax.devices()[:5])
    for check_vma in (True, False):
        cut = jax.shard_map(fn, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=check_vma)
        assert_equal(jax.jit(cut)(params(), batch()), want)


@pytest.mark.full_pipeline
def test_memory_is_that_of_a_chunk_and_of_the_representations() -> None:
    """An encoder with 512 hidden units per example and 4 outputs: 448 more examples keep what they come as and what
    becomes of them, some copies of 16 numbers each; the whole batch at once keeps their hidden units."""
    p = {"in": jax.ShapeDtypeStruct((8, 512), jnp.float32), "out": jax.ShapeDtypeStruct((512, 4), jnp.float32)}

    def net(p: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ p["in"]) @ p["out"]

    def loss(r: jax.Array) -> jax.Array:
        return tiled_contrastive_loss(r, r[::-1], tile=16)

    def growth(fn: Any) -> int:
        sizes = []
        for examples in (64, 512):
            x = jax.ShapeDtypeStruct((examples, 8), jnp.float32)
            memory = jax.jit(fn).lower(p, x).compile().memory_analysis()
            assert memory is not None
            sizes.append(memory.temp_size_in_bytes)
        return sizes[1] - sizes[0]

    # The batch dealt out into chunks (8 numbers each), and of 4 numbers each: r, its gradient, both in order and in
    # chunks, and ten such arrays of the loss, twice as r is in it twice.
    assert growth(grad_cache(net, loss, 16)) <= 448 * 4 * (8 + 4 * (4 + 2 * 10))
    assert growth(jax.value_and_grad(lambda p, x: loss(net(p, x)))) >= 448 * 4 * 512


def test_aux_and_dtypes() -> None:
    """Sums over chunks are float32: 512 ones in bfloat16 would stop at 256."""
    fn = grad_cache(lambda w, x: x * w, lambda r: (jnp.sum(r.astype(jnp.float32)), r.shape), 1, has_aux=True)
    (value, aux), g = fn(jnp.ones((), jnp.bfloat16), jnp.ones(512, jnp.bfloat16))
    assert value.dtype == jnp.float32 and aux == (512,) and g.dtype == jnp.bfloat16 and float(g) == 512


def test_bad_input() -> None:
    for name, make in (
        ("encode", lambda: grad_cache(3, contrast, 1)),
        ("loss_fn", lambda: grad_cache(encode, 3, 1)),
        ("chunk", lambda: grad_cache(encode, contrast, 0)),
    ):
        with pytest.raises(ValueError, match=f"{name} must be"):
            make()
    x = jnp.ones((4, 3))
    for wrong in (lambda p, x: jnp.mean(x), lambda p, x: (x, x.mean(0)), lambda p, x: "x", lambda p, x: x.astype(int)):
        with pytest.raises(ValueError, match="encode must return floating point arrays"):
            grad_cache(wrong, jnp.sum, 2)(x, x)
    with pytest.raises(ValueError, match="got no array"):
        grad_cache(lambda p, x: None, jnp.sum, 2)(x, x)
    for bad in ({"a": x, "b": x[:3]}, x[:0], {}):
        with pytest.raises(ValueError, match="grad_cache: "):
            grad_cache(encode, jnp.sum, 2)(x, bad)
