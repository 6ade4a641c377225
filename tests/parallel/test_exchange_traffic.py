"""What exchanges move between eight devices, by dtype and count, read from the compiled program; and nothing beside."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gradkit import parallel
from gradkit.parallel import collective_bytes, init_replicas

pytestmark = pytest.mark.full_pipeline

W, N = 8, 4096
SHAPE = (64, 64)
K = 41  # ceil(0.01 * 4096)

# exchange -> (opcode, dtype, entries of the result on one device) of every collective
EXPECTED: dict[str, tuple[Any, list[tuple[str, str, int]]]] = {
    "mean": (parallel.mean_compressor(), [("all-reduce", "f32", N)]),
    "int8": (
        parallel.error_feedback(parallel.int8_compressor()),
        [("all-gather", "f32", 16), ("all-gather", "s8", N), ("all-to-all", "f32", 16), ("all-to-all", "s8", N)],
    ),
    "int4": (
        parallel.error_feedback(parallel.int8_compressor(bits=4)),
        [
            ("all-gather", "f32", 16),
            ("all-gather", "u8", N // 2),
            ("all-to-all", "f32", 16),
            ("all-to-all", "u8", N // 2),
        ],
    ),
    "top_k": (
        parallel.error_feedback(parallel.top_k_compressor(0.01)),
        [("all-gather", "f32", W * K), ("all-gather", "s32", W * K)],
    ),
    "dgc": (
        parallel.deep_gradient_compression(ratio=0.01),
        [("all-gather", "f32", W * K), ("all-gather", "s32", W * K)],
    ),
    # 32 coefficients of every tile of 64 by 64 and their places.
    "dct_top_k": (parallel.dct_top_k(), [("all-gather", "f32", W * N // 128), ("all-gather", "s32", W * N // 128)]),
    "demo": (parallel.demo(0.1), [("all-gather", "f32", W * N // 128), ("all-gather", "s32", W * N // 128)]),
    "random_k": (parallel.random_k_compressor(0.01, key=0), [("all-reduce", "f32", K)]),
    "sign": (parallel.sign_compressor(), [("all-gather", "f32", W), ("all-gather", "u8", W * N // 8)]),
    "powersgd": (parallel.powersgd(2), [("all-reduce", "f32", 128), ("all-reduce", "f32", 128)]),
    # One of the two runs in a step: they are in the branches of a conditional.
    "powersgd_alternating": (
        parallel.powersgd(2, alternating=True),
        [("all-reduce", "f32", 128), ("all-reduce", "f32", 128)],
    ),
    "terngrad": (parallel.terngrad(key=0), [("all-gather", "u8", W * N // 4), ("all-reduce", "f32", 1)]),
    "terngrad_int8": (parallel.terngrad(key=0, wire="int8"), [("all-reduce", "f32", 1), ("all-reduce", "s8", N)]),
}


def mesh_of(kind: AxisType = AxisType.Auto) -> Any:
    return jax.make_mesh((W,), ("replica",), axis_types=(kind,))


def rows(tx: Any, *, gradient: bool = False) -> Any:
    """The collectives of an update, or of a gradient and its update, in `shard_map`."""
    mesh = mesh_of()
    place = NamedSharding(mesh, P("replica"))
    x = jax.device_put(jnp.ones((W, *SHAPE)), place)
    state = jax.tree.map(lambda s: jax.device_put(s, place), init_replicas(tx, x))

    def block(x: Any, state: Any, g: Any) -> Any:
        x, state, g = jax.tree.map(lambda v: v[0], (x, state, g))
        if gradient:  # x has an axis of replicas, so its gradient is its own
            g = jax.grad(lambda x: jnp.sum(jnp.tanh(g @ x)))(x)
        updates, state = tx.update(g, state, x)
        return jax.tree.map(lambda v: v[None], (updates, state))

    program = jax.jit(jax.shard_map(block, mesh=mesh, in_specs=P("replica"), out_specs=P("replica")))
    return collective_bytes(program.lower(x, state, x).compile())


def counted(found: Any) -> list[tuple[str, str, int]]:
    """Opcode, dtype and entries; the members of a tuple are added up where they have one dtype."""
    out = []
    for row in found:
        for dtype in dict.fromkeys(row.dtypes):
            size = sum(int(np.prod(s)) for d, s in zip(row.dtypes, row.shapes, strict=True) if d == dtype)
            out.append((row.opcode, dtype, size))
    return sorted(out)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_bytes_are_those_of_the_table(name: str) -> None:
    tx, want = EXPECTED[name]
    assert counted(rows(tx)) == sorted(want)


def test_int8_is_a_quarter_of_float32_and_the_scales() -> None:
    def wire(name: str) -> float:
        return sum(row.wire_bytes for row in rows(EXPECTED[name][0]))

    dense = wire("mean")
    assert dense == 2 * (W - 1) / W * 4 * N
    assert wire("int8") <= 0.26 * dense
    assert wire("int4") <= 0.135 * dense


@pytest.mark.parametrize("name", ["int8", "top_k"])
def test_a_gradient_inside_the_program_brings_no_sum_of_its_own(name: str) -> None:
    """With respect to parameters that all replicas share, `jax.grad` would send everything uncompressed first."""
    tx, want = EXPECTED[name]
    assert counted(rows(tx, gradient=True)) == sorted(want)


def test_parameters_that_are_sharded_too_move_their_shards_alone() -> None:
    """Two replicas of four devices each: every device exchanges the eighth of the entries that it has."""
    mesh = jax.make_mesh((2, 4), ("replica", "data"), axis_types=(AxisType.Auto,) * 2)
    spec = P("replica", None, "data")
    x = jax.device_put(jnp.ones((2, *SHAPE)), NamedSharding(mesh, spec))

    def block(x: Any) -> Any:
        return parallel.quantized_replica_mean(x[0])[None]

    program = jax.jit(jax.shard_map(block, mesh=mesh, in_specs=spec, out_specs=spec))
    found = counted(collective_bytes(program.lower(x).compile()))
    assert [row for row in found if row[1] == "s8"] == [("all-gather", "s8", N // 4), ("all-to-all", "s8", N // 4)]
    assert all(size <= 8 for _, dtype, size in found if dtype == "f32")


def test_the_memory_of_every_replica_survives_a_checkpoint(tmp_path: Any) -> None:
    """Saved and restored between two steps, to the last bit; what replicas remember differs."""
    from flax import serialization

    tx = parallel.powersgd(1, min_compression_rate=0.0)
    g = jnp.asarray(np.random.default_rng(0).standard_normal((W, 6, 4)), jnp.float32)
    step = jax.jit(jax.vmap(tx.update, axis_name="replica"))
    _, state = step(g, init_replicas(tx, g))
    (tmp_path / "state").write_bytes(serialization.to_bytes(state))
    back = serialization.from_bytes(init_replicas(tx, g), (tmp_path / "state").read_bytes())
    assert np.ptp(state.error, axis=0).min() > 0
    for a, b in zip(jax.tree.leaves(step(g, state)), jax.tree.leaves(step(g, back)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["int8", "top_k", "powersgd", "terngrad", "terngrad_int8"])
def test_replicas_along_two_axes_of_a_mesh_are_replicas(name: str) -> None:
    """A tuple of names: the numbers of one axis of the same length, in the order of the mesh."""
    make: Any = {
        "int8": parallel.int8_compressor,
        "top_k": lambda axis_name: parallel.top_k_compressor(0.1, axis_name=axis_name),
        "powersgd": lambda axis_name: parallel.powersgd(2, axis_name=axis_name),
        "terngrad": lambda axis_name: parallel.terngrad(key=0, axis_name=axis_name),
        "terngrad_int8": lambda axis_name: parallel.terngrad(key=0, wire="int8", axis_name=axis_name),
    }[name]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((W, 16, 16)), jnp.float32)
    got = []
    for shape, names in (((W,), ("replica",)), ((2, 4), ("slow", "fast"))):
        mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))
        tx = make(axis_name=names if len(names) > 1 else names[0])

        def block(x: Any, tx: Any = tx) -> Any:
            return tx.update(x[0], tx.init(x[0]))[0][None]

        spec = P(names if len(names) > 1 else names[0])
        got.append(jax.jit(jax.shard_map(block, mesh=mesh, in_specs=spec, out_specs=spec))(x))
    # Sums in another order: a few roundings of numbers below 8.
    np.testing.assert_allclose(got[0], got[1], rtol=0, atol=8 * 8 * 2**-24)
