"""The sigmoid loss of pairs, on one device and round a ring (Zhai et al., 2023)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from gradkit.losses import sigmoid_contrastive_loss
from gradkit.parallel import collective_bytes, ring_sigmoid_contrastive_loss
from tests.papers.replay import assert_equal, normal

N, D = 8, 3
ALL = (0, 1, 2, 3)


def arguments() -> tuple[Any, ...]:
    return normal(0, N, D), normal(1, N, D), jnp.asarray(0.7), jnp.asarray(-1.3)


def oracle(image: Any, text: Any, t: Any, b: Any) -> tuple[Any, Any]:
    """Value and gradients by the definition, in NumPy."""
    image, text, t, b = (np.asarray(x, np.float64) for x in (image, text, t, b))
    n, y = len(image), 2 * np.eye(len(image)) - 1
    products = image @ text.T
    z = np.exp(t) * products + b
    value = -np.sum(np.log(1 / (1 + np.exp(-y * z)))) / n
    dz = -y / (1 + np.exp(y * z)) / n
    scaled = np.exp(t) * dz
    return value, (scaled @ text, scaled.T @ image, np.sum(scaled * products), np.sum(dz))


@pytest.mark.parametrize("chunk", [None, 3])
def test_the_definition(chunk: int | None, x64: None) -> None:
    """Chunks that do not divide the batch too."""
    loss = functools.partial(sigmoid_contrastive_loss, chunk=chunk)
    assert_equal(jax.jit(jax.value_and_grad(loss, ALL))(*arguments()), oracle(*arguments()))


def test_orthogonal_embeddings_at_the_start(x64: None) -> None:
    """Logits of -10 off the diagonal and 0 on it, with an image that is its text: one softplus of each kind per row."""
    e = jnp.eye(6)
    want = 5 * np.log1p(np.exp(-10.0)) + np.log(2.0)
    np.testing.assert_allclose(sigmoid_contrastive_loss(e, e, jnp.log(10.0), -10.0), want, rtol=1e-13)
    # Without any similarity: (n - 1) softplus(-10) + softplus(10).
    zeros = sigmoid_contrastive_loss(e, jnp.zeros_like(e), jnp.log(10.0), -10.0)
    np.testing.assert_allclose(zeros, 5 * np.log1p(np.exp(-10.0)) + np.log1p(np.exp(10.0)), rtol=1e-13)


def on_ring(n: int, inside: bool = False, chunk: int | None = None) -> Any:
    mesh = jax.make_mesh((n,), ("a",), (AxisType.Auto,), devices=jax.devices()[:n])
    loss = functools.partial(ring_sigmoid_contrastive_loss, axis_name="a", chunk=chunk)
    sharded = functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("a"), P("a"), P(), P()))
    if inside:
        return sharded(jax.value_and_grad(loss, ALL), out_specs=(P(), (P("a"), P("a"), P(), P())))
    return jax.value_and_grad(sharded(loss, out_specs=P()), ALL)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "inside", "chunk"), [(1, False, None), (2, True, None), (4, False, None), (4, True, 1)])
def test_a_ring_of_devices_is_one_device(n: int, inside: bool, chunk: int | None, x64: None) -> None:
    """Value and all gradients, differentiated inside `shard_map` and around it."""
    assert_equal(jax.jit(on_ring(n, inside, chunk))(*arguments()), oracle(*arguments()))


@pytest.mark.slow
@pytest.mark.full_pipeline
def test_text_blocks_move_and_no_batch_is_gathered() -> None:
    """Of 8 devices with m = 16 pairs of d = 8 features: blocks of m d, hop by hop, and sums of scalars."""
    m, d = 16, 8
    pairs, one = jax.ShapeDtypeStruct((8 * m, d), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    found = collective_bytes(jax.jit(on_ring(8)).lower(pairs, pairs, one, one).compile())
    assert {row.opcode for row in found} <= {"collective-permute", "all-reduce"}
    assert all(set(row.shapes) == {()} for row in found if row.opcode == "all-reduce")
    assert {row.result_bytes for row in found if row.opcode == "collective-permute"} == {4 * m * d}
    # Of text a hop ahead of the loop and one in it, forward and backward; of its gradient one in the loop and one home.
    assert len([row for row in found if row.opcode == "collective-permute"]) <= 6


@pytest.mark.slow
@pytest.mark.full_pipeline
def test_memory_does_not_grow_with_the_devices() -> None:
    """With m = 64 pairs on each device; autodiff through the loop would keep D - 2 blocks of text and of logits."""

    def temporary(n: int) -> int:
        pairs, one = jax.ShapeDtypeStruct((64 * n, 32), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
        return jax.jit(on_ring(n)).lower(pairs, pairs, one, one).compile().memory_analysis().temp_size_in_bytes

    # A block of text is 8 KiB and one of logits 16 KiB: the rest is the bookkeeping of the loop.
    assert temporary(8) <= temporary(4) + 4096


def test_bad_input() -> None:
    e = jnp.eye(3)
    with pytest.raises(ValueError, match="image and text must be floating point of one shape"):
        sigmoid_contrastive_loss(e, e[:2], 1.0, 0.0)
    with pytest.raises(ValueError, match="bias must be"):
        sigmoid_contrastive_loss(e, e, 1.0, None)
    with pytest.raises(ValueError, match="chunk must be"):
        sigmoid_contrastive_loss(e, e, 1.0, 0.0, chunk=0)
    with pytest.raises(ValueError, match="axis_name must be an axis here"):
        ring_sigmoid_contrastive_loss(e, e, 1.0, 0.0, axis_name="nowhere")
