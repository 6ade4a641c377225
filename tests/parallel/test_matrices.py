"""Matrix work spread over a mesh: the numbers of one device, one owner per matrix, and no exchange but the counted."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.engine.fields import init_fields
from gradkit.engine.mapping import apply_to_matrices, map_stacks
from gradkit.engine.parts import beside
from gradkit.engine.placement import flops
from gradkit.engine.planning import plan_stacks
from gradkit.leaves import default_layout, layout
from gradkit.parallel import collective_bytes
from tests.by_numpy import by_numpy

pytestmark = pytest.mark.usefixtures("x64")

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit

# Fused query, key and value; a stack of 5 layers; a convolution; wide and tall; heads.
SHAPES: dict[str, tuple[int, ...]] = {
    "a/kernel": (8, 16),
    "b/kernel": (16, 8),
    "c/kernel": (16, 16),
    "ScanBlock_0/kernel": (5, 8, 16),
    "qkv/kernel": (8, 32),
    "conv/kernel": (2, 2, 8, 16),
    "query/kernel": (8, 8, 2),
    "d/kernel": (24, 24),
}
FUSED = layout((gk.leaves.by_path("qkv/kernel"), {"splits": (16, 8, 8)}))
PLACES = {
    "replicated": dict.fromkeys(SHAPES, P()),
    "rows": {k: P(*[None] * default_layout(k, s).inputs[-1], "x") for k, s in SHAPES.items()},
    "columns": {k: P(*[None] * default_layout(k, s).outputs[0], "x") for k, s in SHAPES.items()},
    "mixed": dict(
        zip(SHAPES, [P("x"), P(None, "x"), P("x"), P(None, "x"), P(None, "x"), P(), P("x"), P(None, "x")], strict=True)
    ),
}


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    return {k.split("/")[0]: {"kernel": v} for k, v in flat.items()}


def draw(shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return nest({k: jnp.asarray(rng.standard_normal(s)) for k, s in shapes.items()})


def mesh_of(kind: AxisType = AUTO, **sizes: int) -> Mesh:
    devices = jax.devices()[: math.prod(sizes.values())]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(kind,) * len(sizes), devices=devices)


def put(mesh: Mesh, tree: Any, specs: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), tree, specs)


def spread(mesh: Mesh, tree: Any, specs: Any, shard: Any, **options: Any) -> tuple[Any, Any]:
    """One update of Muon's direction, compiled, and the program."""
    tx = gk.scale_by_muon(layout=FUSED if "qkv" in tree else None, shard=shard, **options)
    there = put(mesh, tree, specs)
    with jax.set_mesh(mesh):
        state = jax.tree.map(jnp.zeros_like, tx.init(there))
        program = jax.jit(lambda g, s: tx.update(g, s)[0]).lower(there, state).compile()
        return program(there, state), program


def alone(tree: Any, **options: Any) -> Any:
    tx = gk.scale_by_muon(layout=FUSED if "qkv" in tree else None, **options)
    return by_numpy(lambda tree: tx.update(tree, tx.init(tree))[0])(tree)


def assert_near(got: Any, want: Any, rtol: float = 1e-12) -> None:
    """Relative to the norm of the leaf, in float64: sums in another order, times the slope of the map at 0, 3.4^5."""
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert np.linalg.norm(x - y) <= rtol * np.linalg.norm(y)


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("devices", "kind"), [(1, AUTO), (2, EXPLICIT), (4, AUTO), (8, EXPLICIT)])
def test_equals_one_device(place: str, devices: int, kind: AxisType) -> None:
    """Mixed shapes, counts that do not divide, stacks, convolutions, fused weights; results lie where leaves lie."""
    mesh, tree, specs = mesh_of(kind, x=devices), draw(), nest(PLACES[place])
    given = specs if kind == AUTO else None
    got, _ = spread(mesh, tree, specs, gk.MatrixSharding(mesh, "x", specs=given, min_dim=0))
    assert_near(got, alone(tree))
    for x, spec in zip(jax.tree.leaves(got), jax.tree.leaves(specs), strict=True):
        assert x.sharding.is_equivalent_to(NamedSharding(mesh, spec), x.ndim)


@pytest.mark.full_pipeline
@pytest.mark.parametrize("kind", [AUTO, EXPLICIT], ids=["auto", "explicit"])
def test_two_mesh_axes(kind: AxisType) -> None:
    """Cut along one, shared out along the other too: both leave one eighth of the matrices to each device."""
    mesh, tree = mesh_of(kind, replica=2, x=4), draw({f"{i}/kernel": (8, 16) for i in range(8)})
    specs = jax.tree.map(lambda _: P(None, "x"), tree)
    shard = gk.MatrixSharding(mesh, ("replica", "x"), specs=specs if kind == AUTO else None, min_dim=0)
    got, program = spread(mesh, tree, specs, shard)
    assert_near(got, alone(tree))
    assert [row.opcode for row in collective_bytes(program)] == ["all-to-all", "all-gather", "all-to-all"]


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT], ids=["auto", "explicit"])
def test_cut_along_rows_and_columns_at_once(kind: AxisType) -> None:
    mesh, tree = mesh_of(kind, fsdp=4, tensor=2), draw({f"{i}/kernel": (8, 16) for i in range(3)})
    specs = jax.tree.map(lambda _: P("fsdp", "tensor"), tree)
    shard = gk.MatrixSharding(mesh, "fsdp", specs=specs) if kind == AUTO else None
    got, program = spread(mesh, tree, specs, shard)
    assert_near(got, alone(tree))
    assert [row.opcode for row in collective_bytes(program)] == ["all-to-all"] * 4


EIGHT = {f"{i:02d}/kernel": (8, 8) for i in range(12)}


@pytest.mark.full_pipeline
@pytest.mark.parametrize(
    ("spec", "opcodes", "words"),
    [
        (P(), ["all-gather"], 16 * 64),
        (P("x"), ["all-to-all"] * 2, 2 * 16 * 64 // 8),
        (P(None, "x"), ["all-to-all"] * 2, 2 * 16 * 64 // 8),
    ],
    ids=["replicated", "rows", "columns"],
)
def test_exchanges_are_the_counted(spec: P, opcodes: list[str], words: int) -> None:
    """Twelve matrices on eight devices are padded to sixteen: bytes are those of the padded stack, once or twice."""
    mesh, tree = mesh_of(x=8), draw(EIGHT)
    got, program = spread(mesh, tree, jax.tree.map(lambda _: spec, tree), gk.MatrixSharding(mesh, "x", None, 0, spec))
    rows = collective_bytes(program)
    assert [row.opcode for row in rows] == opcodes
    assert sum(row.result_bytes for row in rows) == 8 * words
    assert_near(got, alone(tree))


@pytest.mark.full_pipeline
def test_all_replicated_stacks_leave_in_one_exchange() -> None:
    mesh, tree = mesh_of(x=8), draw()
    shard = gk.MatrixSharding(mesh, "x", min_dim=0, specs=P())
    _, program = spread(mesh, tree, jax.tree.map(lambda _: P(), tree), shard)
    assert [row.opcode for row in collective_bytes(program)] == ["all-gather"]


@pytest.mark.full_pipeline
def test_stacked_layers_on_their_own_devices_exchange_nothing() -> None:
    mesh, tree = mesh_of(x=8), draw({"ScanBlock_0/kernel": (16, 8, 12)})
    got, program = spread(mesh, tree, nest({"ScanBlock_0/kernel": P("x")}), gk.MatrixSharding(mesh, "x", specs=P("x")))
    assert collective_bytes(program) == ()
    assert_near(got, alone(tree))


@pytest.mark.full_pipeline
def test_small_matrices_stay_where_they_are() -> None:
    mesh, tree = mesh_of(x=8), draw(EIGHT)
    specs = jax.tree.map(lambda _: P(), tree)
    _, program = spread(mesh, tree, specs, gk.MatrixSharding(mesh, "x", specs=P(), min_dim=9))
    assert collective_bytes(program) == ()


def test_results_may_travel_in_bfloat16() -> None:
    """Rounded once, alike on every device."""
    mesh, tree = mesh_of(x=8), draw(EIGHT)
    specs = jax.tree.map(lambda _: P(), tree)
    shard = gk.MatrixSharding(mesh, "x", comm_dtype=jnp.bfloat16, min_dim=0, specs=specs)
    got, _ = spread(mesh, tree, specs, shard)
    want = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), alone(tree))
    assert_near(got, want, rtol=2**-8)
    for x in jax.tree.leaves(got):
        np.testing.assert_array_equal(x, x.astype(jnp.bfloat16).astype(x.dtype))
        copies = [np.asarray(s.data) for s in x.addressable_shards]
        assert all((c == copies[0]).all() for c in copies)


def test_inside_shard_map() -> None:
    """Without a mesh of its own: leaves are what one device holds, replicated or cut."""
    mesh, tree = mesh_of(x=4), draw({"a/kernel": (8, 16), "b/kernel": (16, 8), "c/kernel": (8, 16)})
    specs = nest({"a/kernel": P(), "b/kernel": P("x"), "c/kernel": P(None, "x")})
    tx = gk.scale_by_muon(shard=gk.MatrixSharding(None, "x", min_dim=0, specs=specs))

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(specs,), out_specs=specs, check_vma=False)
    def update(g: Any) -> Any:
        return tx.update(g, gk.scale_by_muon().init(g))[0]

    assert_near(update(put(mesh, tree, specs)), alone(tree))
    plain = gk.scale_by_muon(shard=gk.MatrixSharding(None, "x", min_dim=0))
    got = jax.vmap(lambda i, g: plain.update(g, plain.init(g))[0], (0, None), axis_name="x")(jnp.arange(4), tree)
    assert_near(jax.tree.map(lambda x: x[3], got), alone(tree))


def test_whole_optimizer_on_a_mesh() -> None:
    """Names are those of the parameters though AdamW takes some of them; a fused bias does not disturb."""
    mesh, shapes = mesh_of(x=8), {"kernel": (16, 8), "bias": (8,)}
    specs = {"kernel": P("x"), "bias": P()}
    rng = np.random.default_rng(1)
    g = {k: jnp.asarray(rng.standard_normal(s)) for k, s in shapes.items()}
    tx = gk.muon(0.1, adam_learning_rate=0.1, shard=gk.MatrixSharding(mesh, "x", specs=specs))
    there = put(mesh, g, specs)
    got = jax.jit(lambda g: tx.update(g, tx.init(g), g)[0])(there)
    plain = gk.muon(0.1, adam_learning_rate=0.1)
    assert_near(got, plain.update(g, plain.init(g), g)[0])


def test_what_cannot_be_known_raises() -> None:
    mesh, tree = mesh_of(x=8), draw(EIGHT)
    there = put(mesh, tree, jax.tree.map(lambda _: P("x"), tree))
    tx = gk.scale_by_muon(shard=gk.MatrixSharding(mesh, "x"))
    with pytest.raises(ValueError, match=r"'00/kernel' is traced over Auto axes.*specs="):
        jax.jit(lambda g: tx.update(g, tx.init(g)))(there)
    partial_specs = gk.MatrixSharding(mesh, "x", specs={"00": {"kernel": P()}})
    with pytest.raises(ValueError, match=r"no entry for 01/kernel, 02/kernel"):
        gk.scale_by_muon(shard=partial_specs).update(there, tx.init(there))
    with pytest.raises(ValueError, match="axis must be one of 'x', got 'y'"):
        gk.MatrixSharding(mesh, "y")
    with pytest.raises(ValueError, match="min_dim must be an integer >= 0"):
        gk.MatrixSharding(mesh, "x", min_dim=-1)
    with pytest.raises(ValueError, match="shard must be a MatrixSharding"):
        gk.scale_by_muon(shard=mesh)
    odd = jax.ShapeDtypeStruct((9, 8), jnp.float32)
    with pytest.raises(ValueError, match="do not divide the length 9 of 'w'"):
        plan_stacks({"w": odd}, method="m", shard=gk.MatrixSharding(mesh, "x", specs=P("x")))
    heads = layout((gk.leaves.by_path("query/kernel"), {"splits": (2,) * 8}))
    struct = {"query": {"kernel": jax.ShapeDtypeStruct((8, 2, 8), jnp.float32)}}
    with pytest.raises(ValueError, match="only the first may be sharded"):
        plan_stacks(struct, method="m", layout=heads, shard=gk.MatrixSharding(mesh, "x", specs=P(None, None, "x")))


def test_stacks_are_joined_where_that_saves_rounds() -> None:
    """Six of (16, 16) and two of (15, 16) are two rounds of eight devices apart, and one together; of (2, 16) not."""
    mesh = mesh_of(x=8)

    def stacks(small: int, merge: bool) -> list[tuple[int, int, int]]:
        shapes = {f"a{i}": (16, 16) for i in range(6)} | {f"b{i}": (small, 16) for i in range(2)}
        tree = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
        shard = gk.MatrixSharding(mesh, "x", min_dim=0, specs=P())
        plan = plan_stacks(tree, method="m", shard=shard, transpose=True, merge=merge)
        return sorted((s.n, s.m, s.padded) for s in plan.stacks)

    assert stacks(15, False) == [(15, 16, 8), (16, 16, 8)]
    assert stacks(15, True) == [(16, 16, 8)]
    assert flops(2, 16) < flops(16, 16)
    many = {f"a{i}": (16, 16) for i in range(8)} | {f"b{i}": (2, 16) for i in range(8)}
    tree = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in many.items()}
    shard = gk.MatrixSharding(mesh, "x", None, 0, P())
    plan = plan_stacks(tree, method="m", shard=shard, transpose=True, merge=True)
    assert len(plan.stacks) == 2
    tree = draw({f"a{i}/kernel": (16, 16) for i in range(6)} | {f"b{i}/kernel": (15, 16) for i in range(2)})
    got, _ = spread(mesh, tree, jax.tree.map(lambda _: P(), tree), shard)
    assert_near(got, alone(tree))


def test_one_call_per_shape_up_to_transposition() -> None:
    """Also of stacked layers; a kernel that does not commute sees matrices as they are."""
    seen = []

    def kernel(x: jax.Array) -> jax.Array:
        seen.append(x.shape)
        return 2 * x

    tree = draw({"a/kernel": (4, 6), "b/kernel": (6, 4), "ScanBlock_0/kernel": (3, 4, 6), "c/kernel": (5, 5)})
    plan = plan_stacks(tree, method="m", transpose=True)
    got = apply_to_matrices(plan, kernel, tree)
    assert sorted(seen) == [(1, 5, 5), (5, 4, 6)]
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, 2 * y), got, tree)
    seen.clear()
    apply_to_matrices(plan_stacks(tree, method="m"), kernel, tree)
    assert sorted(seen) == [(1, 5, 5), (1, 6, 4), (4, 4, 6)]


@pytest.mark.parametrize("place", ["replicated", "columns"])
def test_what_belongs_to_matrices_stays_with_their_owner(place: str) -> None:
    """A statistic per matrix, never exchanged: after two steps it is that of one device."""
    mesh, tree = mesh_of(x=8), draw(EIGHT)
    spec = P() if place == "replicated" else P(None, "x")

    class Own(NamedTuple):
        S: Any

    def make(rows: int, dims: tuple[int, ...], dtype: Any, _: Any) -> Own:
        return Own(beside(jnp.zeros((rows, dims[0], dims[0]), dtype), ((0,), (1,))))

    def kernel(x: jax.Array, own: Own, numbers: Any, _: Any) -> tuple[jax.Array, Own]:
        S = own.S + numbers["b"] * x @ jnp.swapaxes(x, 1, 2)
        return S @ x, Own(S)

    def run(tree: Any, plan: Any) -> Any:
        out, fields = tree, init_fields(plan, tree)
        for _ in range(2):
            out, fields = map_stacks(plan, kernel, tree, fields, {"b": jnp.float64(0.5)})
        return out, fields["S"]

    one = plan_stacks(tree, make, method="m")
    many = plan_stacks(tree, make, method="m", shard=gk.MatrixSharding(mesh, "x", None, 0, spec))
    there = put(mesh, tree, jax.tree.map(lambda _: spec, tree))
    compiled = jax.jit(partial(run, plan=many)).lower(there).compile()
    (got, got_owned), (want, want_owned) = compiled(there), run(tree, one)
    assert_near(got, want)
    assert many.stacks[0].padded == 16
    (S,) = got_owned.values()
    by_name = {row.split("/")[0]: S.arrays[i] for i, row in enumerate(S.rows) if row}
    assert_near(by_name, {k: x["kernel"]["inputs"] for k, x in want_owned.items()})
    assert S.arrays.addressable_data(0).shape == (2, 8, 8)


@pytest.mark.full_pipeline
def test_optax_moves_more() -> None:
    """The comparison this path exists for: of the same twelve matrices, cut along rows."""
    from optax.contrib import muon

    mesh, tree = mesh_of(x=8), {k: jnp.ones(s) for k, s in EIGHT.items()}
    there = put(mesh, tree, jax.tree.map(lambda _: P("x"), tree))
    tx = optax.with_extra_args_support(muon(0.1))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state = jax.jit(tx.init)(there)
        program = jax.jit(lambda g, s: tx.update(g, s, g)).lower(there, state).compile()
    assert len(collective_bytes(program)) > 2 * 12
