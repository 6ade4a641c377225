"""Replicas: their mean, and where their parameters and state lie."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.parallel import collective_bytes, init_replicas, replica_mean, replicate

KINDS = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])


def mesh_of(kind: AxisType = AxisType.Auto) -> Mesh:
    return jax.make_mesh((4, 2), ("replica", "data"), axis_types=(kind,) * 2)


def test_the_mean_is_taken_in_float32_and_rounded_once() -> None:
    """Of 512 bfloat16 ones and halves; a sum in bfloat16 would stop growing at 256."""
    x = {"ones": jnp.ones((512, 2), jnp.bfloat16), "mixed": jnp.tile(jnp.array([0.5, 1.0], jnp.bfloat16), 256)}
    mean = jax.vmap(replica_mean, axis_name="replica")(x)
    assert {m.dtype.name for m in jax.tree.leaves(mean)} == {"bfloat16"}
    np.testing.assert_array_equal(mean["ones"].astype(jnp.float32), 1.0)
    np.testing.assert_array_equal(mean["mixed"].astype(jnp.float32), 0.75)
    z = jnp.array([1 + 2j, 3 - 2j], jnp.complex64)
    np.testing.assert_array_equal(jax.vmap(replica_mean, axis_name="replica")(z), [2 + 0j, 2 + 0j])


@KINDS
def test_the_mean_on_a_mesh_is_the_same_on_all_replicas_by_its_type(kind: AxisType) -> None:
    """It may leave `shard_map` as one array; with it sharded along the other axis, only shards travel."""
    mesh = mesh_of(kind)
    x = np.random.default_rng(0).standard_normal((4, 6, 8)).astype(np.float32)
    with jax.set_mesh(mesh):
        there = jax.device_put(x, NamedSharding(mesh, P("replica", None, "data")))
        inside, outside = P("replica", None, "data"), P(None, None, "data")
        mean = jax.shard_map(replica_mean, mesh=mesh, in_specs=inside, out_specs=outside)
        program = jax.jit(mean).lower(there).compile()
        np.testing.assert_allclose(program(there)[0], x.mean(0), rtol=0, atol=4 * 2**-24 * 4)
        (row,) = collective_bytes(program)
    assert (row.opcode, row.group_size, row.result_bytes) == ("all-reduce", 4, 4 * 6 * 8 // 2)


def test_the_mean_of_two_axes() -> None:
    x = jnp.arange(6.0).reshape(2, 3)
    mean = jax.vmap(jax.vmap(lambda x: replica_mean(x, ("pod", "replica")), axis_name="replica"), axis_name="pod")(x)
    np.testing.assert_array_equal(mean, np.full((2, 3), 2.5))


@KINDS
def test_parameters_and_state_are_born_where_they_belong(kind: AxisType) -> None:
    mesh = mesh_of(kind)
    specs = {"bias": P("data"), "kernel": P(None, "data"), "scale": P()}
    start = {"bias": jnp.ones(4), "kernel": jnp.ones((3, 4)), "scale": jnp.ones(())}
    with jax.set_mesh(mesh):
        start = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), start, specs)
        params = replicate(start, 4)
        state = init_replicas(gk.parallel.diloco(optax.adam(0.1)), params)
    adam = state.inner[0]
    for tree in (params, state.start, state.outer[0].trace, adam.mu, adam.nu):
        for name, spec in specs.items():
            assert tree[name].shape == (4, *start[name].shape)
            assert tree[name].sharding.is_equivalent_to(NamedSharding(mesh, P("replica", *spec)), tree[name].ndim)
    for count in (state.count, state.next_sync, adam.count):
        assert count.shape == (4,)
        assert count.sharding.is_equivalent_to(NamedSharding(mesh, P("replica")), 1)


def test_replicas_without_a_mesh() -> None:
    params = replicate({"a": None, "w": np.arange(3.0, dtype=np.float32)}, 2)
    np.testing.assert_array_equal(params["w"], [[0, 1, 2]] * 2)
    state = init_replicas(optax.adam(0.1), params)
    assert jax.tree.map(jnp.shape, jax.tree.leaves(state)) == [(2,), (2, 3), (2, 3)]
    inside: Any = jax.jit(lambda p: init_replicas(optax.adam(0.1), replicate(p, 2)))(jnp.ones(3))
    assert inside[0].mu.shape == (2, 3)
    assert jax.eval_shape(lambda p: init_replicas(optax.adam(0.1), p), params)[0].mu["w"].shape == (2, 3)
    assert replicate({}, 3) == {}


def test_bad_input() -> None:
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="replicas must be an integer >= 1"):
            replicate(jnp.ones(2), bad)
    mesh = mesh_of()
    there = jax.device_put(jnp.ones(4), NamedSharding(mesh, P()))
    with pytest.raises(ValueError, match="replicas must be the length 4 of the mesh axis 'replica', got 2"):
        replicate(there, 2)
    with pytest.raises(ValueError, match="already sharded along 'replica'"):
        replicate({"w": jax.device_put(jnp.ones(8), NamedSharding(mesh, P(("data", "replica"))))}, 4)
    with pytest.raises(ValueError, match="some leaves are on a mesh with an axis 'replica', and \\['b'\\] are not"):
        replicate({"a": there, "b": jnp.ones(2)}, 4)
    with pytest.raises(ValueError, match="the leaf 'n' has dtype int32, of which there is no mean"):
        jax.vmap(replica_mean, axis_name="replica")({"n": jnp.ones(3, jnp.int32)})
    with pytest.raises(ValueError, match="there is no axis 'replica' here"):
        replica_mean(jnp.ones(3))


def test_another_number_of_replicas_keeps_the_mean_and_what_is_common() -> None:
    """Three go on as five: equal parameters to the last bit, the memory of error feedback in the mean."""
    tx = gk.parallel.diloco(
        gk.adamw(0.1), sync_every=2, exchange=gk.parallel.error_feedback(gk.parallel.top_k_compressor(0.3))
    )
    x = {"w": jnp.asarray(np.random.default_rng(0).standard_normal(7), jnp.float32)}
    old = replicate(x, 3)
    state = init_replicas(tx, old)
    g = {"w": np.random.default_rng(1).standard_normal((3, 7)).astype(np.float32)}
    u, state = jax.jit(jax.vmap(tx.update, axis_name="replica"))(g, state, old)
    moved = optax.apply_updates(old, u)
    old, state = jax.vmap(lambda x, s: gk.parallel.synchronize(tx, x, s), axis_name="replica")(moved, state)
    new, after = gk.parallel.resize_replicas((old, state), 5)
    np.testing.assert_array_equal(new["w"], np.tile(np.asarray(old["w"])[:1], (5, 1)))
    assert after.count.tolist() == [1] * 5
    before, now = (np.asarray(s.exchange.error["w"]) for s in (state, after))
    # A mean of three numbers below 2 in float32, and one of five equal ones.
    np.testing.assert_allclose(now.mean(0), before.mean(0), atol=8 * 2**-23)
    assert np.abs(before).max() > 0 and np.ptp(now, axis=0).max() == 0
    jax.vmap(tx.update, axis_name="replica")(new, after, new)


def test_replicas_get_keys_of_their_own() -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    new = gk.parallel.resize_replicas({"key": keys, "x": jnp.ones((2, 3))}, 5)["key"]
    assert len({tuple(row) for row in np.asarray(jax.random.key_data(new)).tolist()}) == 5
    with pytest.raises(ValueError, match="all leaves must have one leading axis of replicas"):
        gk.parallel.resize_replicas({"a": jnp.ones(2), "b": jnp.ones(3)}, 4)
