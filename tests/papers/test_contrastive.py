"""Contrastive losses by tiles and round a ring (Cheng et al., 2024)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from gradkit.parallel import collective_bytes, ring_contrastive_loss, tiled_contrastive_loss
from tests.papers.replay import assert_equal, normal

pytestmark = pytest.mark.slow

B, D = 24, 5
BOTH = pytest.mark.parametrize("symmetric", [True, False])


def direct(q: jax.Array, k: jax.Array, s: Any, symmetric: bool) -> jax.Array:
    """Cross entropy on the whole matrix, in which every query's class is its own key."""
    z, own = s * q @ k.T, jnp.arange(q.shape[0])
    rows, columns = (optax.softmax_cross_entropy_with_integer_labels(x, own).mean() for x in (z, z.T))
    return (rows + columns) / 2 if symmetric else rows


def gradient(loss: Any, **more: Any) -> Any:
    return jax.jit(jax.value_and_grad(functools.partial(loss, **more), (0, 1, 2)))


def arguments() -> tuple[jax.Array, jax.Array, jax.Array]:
    return normal(0, B, D), normal(1, B, D), jnp.asarray(1.7)


@BOTH
def test_any_tile_is_the_whole_matrix(symmetric: bool, x64: None) -> None:
    """Value and gradients in q, k and the scale; tiles that divide the batch, that do not, and larger than it."""
    want = gradient(direct, symmetric=symmetric)(*arguments())
    for tile in (5, 8, 1000) if symmetric else (1,):
        assert_equal(gradient(tiled_contrastive_loss, tile=tile, symmetric=symmetric)(*arguments()), want)


def test_symmetric_is_the_mean_of_both_directions(x64: None) -> None:
    q, k, s = arguments()
    one, other = (tiled_contrastive_loss(*x, s, tile=7, symmetric=False) for x in ((q, k), (k, q)))
    assert_equal(tiled_contrastive_loss(q, k, s, tile=7), (one + other) / 2)
    assert abs(one - other) > 1e-2


def on_ring(n: int, symmetric: bool, *, check_vma: bool = True, inside: bool = False) -> Any:
    """Value and gradients of pairs cut over n devices; differentiated inside `shard_map`, or outside."""
    axes = ("a", "b") if n == 4 else ("a",)
    mesh = jax.make_mesh((2, 2) if n == 4 else (n,), axes, (AxisType.Auto,) * len(axes), devices=jax.devices()[:n])
    loss = functools.partial(ring_contrastive_loss, axis_name=axes if n == 4 else "a", tile=2, symmetric=symmetric)
    cut = functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(axes), P(axes), P()), check_vma=check_vma)
    if inside:
        return jax.jit(cut(jax.value_and_grad(loss, (0, 1, 2)), out_specs=(P(), (P(axes), P(axes), P()))))
    return jax.jit(jax.value_and_grad(cut(loss, out_specs=P()), (0, 1, 2)))


@BOTH
@pytest.mark.parametrize("n", [2, 4])
def test_a_ring_of_devices_is_one_device(symmetric: bool, n: int, x64: None) -> None:
    """Also along two axes of a mesh (n = 4), and differentiated inside `shard_map`."""
    want = gradient(direct, symmetric=symmetric)(*arguments())
    assert_equal(on_ring(n, symmetric)(*arguments()), want)
    if n == 2:
        assert_equal(on_ring(n, symmetric, inside=True)(*arguments()), want)
        assert_equal(on_ring(n, symmetric, check_vma=False)(*arguments()), want)


def test_a_ring_under_vmap(x64: None) -> None:
    """Every member has the loss of all pairs; the transpose of their sum is a sum of three ones."""
    q, k, s = arguments()
    ring = jax.value_and_grad(functools.partial(ring_contrastive_loss, axis_name="i", tile=4), (0, 1, 2))
    mapped = jax.jit(jax.vmap(ring, in_axes=(0, 0, None), axis_name="i"))
    value, (dq, dk, ds) = mapped(q.reshape(3, 8, D), k.reshape(3, 8, D), s)
    want, grads = gradient(direct, symmetric=True)(q, k, s)
    assert_equal(value, jnp.full(3, want))
    assert_equal((dq.reshape(B, D) / 3, dk.reshape(B, D) / 3, ds.sum() / 3), grads)


@pytest.mark.full_pipeline
def test_the_ring_moves_blocks_of_keys_and_nothing_else() -> None:
    """Of n = 8 devices with b = 16 pairs of d = 8 features: n - 1 blocks forward, n - 1 of k and of dk backward."""
    n, b, d = 8, 16, 8
    mesh = jax.make_mesh((n,), ("a",), (AxisType.Auto,))
    shape = jax.ShapeDtypeStruct((n * b, d), jnp.float32)

    def rows(differentiate: bool) -> list[int]:
        loss = functools.partial(ring_contrastive_loss, axis_name="a", tile=b, symmetric=False)
        loss = jax.shard_map(loss, mesh=mesh, in_specs=(P("a"), P("a")), out_specs=P())
        program = jax.jit(jax.grad(loss, (0, 1)) if differentiate else loss).lower(shape, shape).compile()
        found = collective_bytes(program)
        assert {row.opcode for row in found} <= {"collective-permute", "all-reduce"}
        assert all(row.result_bytes <= 8 for row in found if row.opcode == "all-reduce")
        return [row.result_bytes for row in found if row.opcode == "collective-permute"]

    # Forward: one hop ahead of the loop, and n - 2 in it. Backward: the same of k, whose first is that of the forward
    # pass; of dk n - 2 in the loop, and one home.
    assert rows(False) == [4 * b * d] * 2
    assert rows(True) == [4 * b * d] * 5
    assert hops(n, b, d) == {"forward": n - 1, "both": 3 * (n - 1)}


def hops(n: int, b: int, d: int) -> dict[str, int]:
    """How often a block of (b, d) is sent, loops counted as often as they run."""

    def count(jaxpr: Any, times: int) -> int:
        total = 0
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "ppermute" and eqn.outvars[0].aval.size == b * d:
                total += times
            inner = times * eqn.params["length"] if eqn.primitive.name == "scan" else times
            for value in eqn.params.values():
                if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                    total += count(getattr(value, "jaxpr", value), inner)
        return total

    loss = functools.partial(ring_contrastive_loss, axis_name="a", tile=b, symmetric=False)
    block = jnp.zeros((n, b, d))
    programs = {"forward": loss, "both": jax.value_and_grad(loss, (0, 1))}
    return {
        name: count(jax.make_jaxpr(lambda q, k, f=f: f(q, k), axis_env=[("a", n)])(block[0], block[0]).jaxpr, 1)
        for name, f in programs.items()
    }


@pytest.mark.full_pipeline
def test_memory_grows_with_the_pairs_and_not_with_their_square() -> None:
    """Between B = 1024 and 4096 by less than ten arrays like q; the matrix at 4096 would be 64 MiB."""
    d, tile = 8, 64

    def temporary(pairs: int) -> int:
        shape = jax.ShapeDtypeStruct((pairs, d), jnp.float32)
        program = gradient(tiled_contrastive_loss, tile=tile).lower(shape, shape, 1.0).compile()
        return program.memory_analysis().temp_size_in_bytes

    small, large = temporary(1024), temporary(4096)
    # Of size B d: q, k, dq, dk in tiles, what a block gathers at home and away, and copies of them in loops.
    assert large - small <= 10 * 4 * 3072 * d
    # And tiles: products, z, dz, two exponentials, and a mask of them.
    assert small <= 10 * 4 * 1024 * d + 8 * 4 * tile**2


def test_large_logits_and_bfloat16() -> None:
    """Logits of some thousands, whose exponentials are infinite; and sums that bfloat16 could not hold."""
    q, k = (np.asarray(normal(i, 10, D), np.float32) for i in (0, 1))
    value, grads = gradient(tiled_contrastive_loss, tile=4)(q, k, 1000.0)
    z = 1000.0 * q.astype(np.float64) @ k.T.astype(np.float64)
    lse = [np.log(np.exp(x - x.max(1, keepdims=True)).sum(1)) + x.max(1) for x in (z, z.T)]
    want = (lse[0].mean() + lse[1].mean()) / 2 - np.trace(z) / 10
    np.testing.assert_allclose(value, want, rtol=1e-5)  # products of 5 terms near 1e3, to 2^-24 each
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    q, k = (jnp.asarray(x, jnp.bfloat16) for x in (q, k))
    value, (dq, dk, ds) = gradient(tiled_contrastive_loss, tile=3)(q, k, jnp.float32(1.0))
    want = gradient(direct, symmetric=True)(q.astype(jnp.float32), k.astype(jnp.float32), jnp.float32(1.0))
    assert (value.dtype, dq.dtype, dk.dtype, ds.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(value, want[0], rtol=1e-5)
    for got, exact in ((dq, want[1][0]), (dk, want[1][1])):  # one rounding to bfloat16, at the end
        np.testing.assert_allclose(got.astype(np.float32), exact, rtol=2**-8, atol=1e-6)


def test_bad_input() -> None:
    q = jnp.ones((4, 2))
    for a, b in ((q, q[:3]), (q, q[:, :1]), (q[0], q[0]), (q[:0], q[:0]), (q, q.astype(jnp.bfloat16))):
        with pytest.raises(ValueError, match="q and k must have one dtype and one shape"):
            tiled_contrastive_loss(a, b)
    with pytest.raises(ValueError, match="floating point"):
        tiled_contrastive_loss(q.astype(int), q.astype(int))
    for name, bad in (("scale", -1.0), ("scale", float("nan")), ("tile", 0), ("tile", 1.5), ("scale", jnp.ones(2))):
        with pytest.raises(ValueError, match=rf"{name} must be"):
            tiled_contrastive_loss(q, q, **{name: bad})
    with pytest.raises(ValueError, match="axis_name must be"):
        ring_contrastive_loss(q, q, axis_name=None)
