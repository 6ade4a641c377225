"""Accumulation inside the step: the gradient of the whole batch, weighted by tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gradkit.gradients import microbatch

pytestmark = pytest.mark.slow

rng = np.random.default_rng(0)
W = rng.standard_normal(3)
BATCH = {"x": rng.standard_normal((8, 5, 3)), "y": rng.standard_normal((8, 5)), "mask": rng.random((8, 5)) < 0.4}
# One microbatch of four without any token.
BATCH["mask"][[1, 5]] = False


def tokens(batch: dict) -> jax.Array:
    return jnp.sum(batch["mask"])


def masked_loss(w: jax.Array, batch: dict) -> jax.Array:
    """A mean over the tokens that count: 0/0 where none does."""
    error = jnp.square(batch["x"] @ w - batch["y"])
    return jnp.sum(jnp.where(batch["mask"], error, 0)) / tokens(batch).astype(error.dtype)


def plain_loss(w: jax.Array, batch: dict) -> jax.Array:
    return jnp.mean(jnp.square(batch["x"] @ w - batch["y"]))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_equals_the_whole_batch(k: int, x64: None) -> None:
    w = jnp.asarray(W)
    for loss, weight in ((plain_loss, None), (masked_loss, tokens)):
        got = jax.jit(microbatch(loss, k, weight=weight))(w, BATCH)
        want = jax.value_and_grad(loss)(w, jax.tree.map(jnp.asarray, BATCH))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got, want)


def test_is_not_the_mean_of_means(x64: None) -> None:
    """Which is what accumulation without weights would give."""
    batch = {**BATCH, "mask": np.arange(40).reshape(8, 5) < 37}
    w = jnp.asarray(W)
    weighted, unweighted = (microbatch(masked_loss, 4, weight=n)(w, batch)[1] for n in (tokens, None))
    want = jax.grad(masked_loss)(w, jax.tree.map(jnp.asarray, batch))
    np.testing.assert_allclose(weighted, want, rtol=1e-12)
    assert np.abs(unweighted - want).max() > 1e-3 * np.abs(want).max()


def test_no_token_at_all() -> None:
    batch = {name: jnp.asarray(x, jnp.float32) for name, x in BATCH.items()}
    batch["mask"] = jnp.zeros((8, 5), bool)
    value, g = microbatch(masked_loss, 2, weight=tokens)(jnp.asarray(W, jnp.float32), batch)
    assert float(value) == 0 and (g == 0).all()


def test_sums_are_float32_whatever_the_parameters_are() -> None:
    """A sum of 512 ones in bfloat16 stops at 256, and their mean would be a half."""
    fn = microbatch(lambda w, b: jnp.mean(w * b), 512)
    value, g = fn(jnp.ones((), jnp.bfloat16), jnp.ones(512, jnp.bfloat16))
    assert value.dtype == g.dtype == jnp.bfloat16
    assert float(value) == float(g) == 1.0


def test_aux_is_stacked_and_arguments_pass_through() -> None:
    def loss(w, batch, scale, *, shift):
        return scale * jnp.mean(w * batch) + shift, {"first": batch[0]}

    (value, aux), g = microbatch(loss, 2, has_aux=True)(jnp.array(2.0), jnp.arange(4.0), 3.0, shift=1.0)
    assert (float(value), float(g)) == (10.0, 4.5)
    # Examples are dealt out in turn, so that a sharded batch is split where it lies.
    assert aux["first"].tolist() == [0.0, 1.0]


def test_trees_with_none_and_without_leaves() -> None:
    params = {"w": jnp.array(2.0), "none": None}
    value, g = microbatch(lambda p, b: jnp.mean(p["w"] * b["x"]), 2)(params, {"x": jnp.arange(4.0), "none": None})
    assert float(value) == 3.0 and g["none"] is None and float(g["w"]) == 1.5
    assert microbatch(lambda p, b: jnp.mean(b), 2)({}, jnp.arange(4.0))[1] == {}


@pytest.mark.parametrize("check_vma", [False, True])
def test_replicas_divide_once(check_vma: bool, x64: None) -> None:
    """Replicas with different numbers of tokens: sums over all of them, then one division."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    w = jnp.asarray(W)
    fn = microbatch(masked_loss, 2, weight=tokens, axis_name="data")
    sharded = jax.shard_map(fn, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=check_vma)
    batch = jax.device_put(BATCH, NamedSharding(mesh, P("data")))
    got = jax.jit(sharded)(w, batch)
    want = jax.value_and_grad(masked_loss)(w, jax.tree.map(jnp.asarray, BATCH))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got, want)


def test_inside_shard_map_without_an_axis(x64: None) -> None:
    """Where shard_map tracks what differs between devices, a loop must too: as `jax.value_and_grad` does."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    batch = jax.device_put(BATCH, NamedSharding(mesh, P("data")))

    def run(source):
        def fn(w, b):
            value, g = source(w, b)
            return jax.lax.pmean(value, "data"), g

        return jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))(jnp.asarray(W), batch)

    got, want = run(microbatch(plain_loss, 2)), run(jax.value_and_grad(plain_loss))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got, want)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_sharded_batch_is_not_gathered(kind: AxisType) -> None:
    """Every device has its share of every microbatch: the only thing that moves is the gradient."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,), devices=jax.devices()[:4])
    fn = microbatch(lambda w, b: jnp.mean(jnp.square(b @ w)), 4)
    with jax.set_mesh(mesh):
        batch = jax.ShapeDtypeStruct((64, 1000), jnp.float32, sharding=NamedSharding(mesh, P("data", None)))
        w = jax.ShapeDtypeStruct((1000,), jnp.float32, sharding=NamedSharding(mesh, P(None)))
        text = jax.jit(fn).lower(w, batch).compile().as_text() or ""
    assert "all-reduce" in text
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in text


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.ones((6, 2)), "a batch of 6 does not divide into 4"),
        (np.ones((0, 2)), "a batch of 0 does not divide"),
        ({"x": np.ones(4), "y": np.ones(8)}, "same leading axis, got {'x': 4, 'y': 8}"),
        ({"x": np.ones(4), "y": np.ones(())}, "'y': 'no axis'"),
        ({}, "got no leaf"),
    ],
)
def test_bad_batches(batch, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        microbatch(lambda w, b: w, 4)(jnp.ones(()), batch)


def test_bad_arguments() -> None:
    for k in (0, 1.5, True):
        with pytest.raises(ValueError, match="microbatches must be an integer >= 1"):
            microbatch(plain_loss, k)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="weight must be callable"):
        microbatch(plain_loss, 2, weight=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="weight must return a scalar"):
        microbatch(lambda w, b: jnp.mean(w * b), 2, weight=lambda b: b)(jnp.ones(()), jnp.ones(4))
