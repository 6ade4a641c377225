"""State that lies with the owner of a tensor: one device's numbers, one eighth of the memory, the counted exchanges."""

import functools
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
from gradkit.engine.parts import beside
from gradkit.engine.planning import as_tensors, plan_stacks
from gradkit.parallel import collective_bytes, init_sharded
from tests.by_numpy import by_numpy
from tests.parallel.test_matrices import assert_near, mesh_of, put
from tests.parallel.test_owned import is_owned

pytestmark = pytest.mark.usefixtures("x64")

# Two of one shape, a stack of layers, a convolution, a vector and a scalar.
SHAPES = {
    "a": (8, 4),
    "b": (8, 4),
    "ScanBlock_0": {"kernel": (4, 8, 4)},
    "conv": {"kernel": (2, 1, 4, 8)},
    "bias": (8,),
    "scale": (),
}
CUT = {
    "a": P("x"),
    "b": P(None, "y"),
    "ScanBlock_0": {"kernel": P("y", "x")},
    # The cut axis of the convolution is an inner one of its kernel.
    "conv": {"kernel": P(None, None, "x", "y")},
    "bias": P("x"),
    "scale": P(),
}
METHODS = {
    "shampoo": lambda shard: gk.shampoo(0.1, b1=0.8, eps=0.1, shard=shard),
    "distributed_shampoo": lambda shard: gk.distributed_shampoo(0.1, eps=0.1, max_dim=4, grafting="adam", shard=shard),
    "soap": lambda shard: gk.soap(0.1, max_dim=4, update_interval=2, shard=shard),
}


def draw(seed: int) -> Any:
    leaves, structure = jax.tree.flatten(SHAPES, is_leaf=lambda s: isinstance(s, tuple))
    rng = np.random.default_rng(seed)
    return structure.unflatten([jnp.asarray(rng.standard_normal(s)) for s in leaves])


def run(
    tx: optax.GradientTransformation, params: Any, grads: list[Any], state: Any, compiled: Any = jax.jit
) -> tuple[Any, Any]:
    update = compiled(tx.update)
    updates: Any = None
    for g in grads:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
        jax.block_until_ready(params)
    return params, state


@functools.cache
def alone(method: str) -> Any:
    tx = METHODS[method](None)
    return run(tx, draw(0), [draw(t) for t in range(1, 4)], tx.init(draw(0)), by_numpy)[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("place", ["replicated", "cut"])
@pytest.mark.parametrize("method", METHODS)
def test_equals_one_device(method: str, place: str, kind: AxisType) -> None:
    """Leaves cut along the batch, along rows, along an inner axis of a convolution; counts that do not divide."""
    mesh = mesh_of(kind, x=2, y=4)
    specs = CUT if place == "cut" else jax.tree.map(lambda _: P(), CUT)
    given = specs if kind == AxisType.Auto else None
    tx = METHODS[method](gk.MatrixSharding(mesh, ("x", "y"), specs=given, min_dim=0))
    grads = [draw(t) for t in range(1, 4)]
    with jax.set_mesh(mesh):
        params = put(mesh, draw(0), specs)
        state = init_sharded(tx, params)
        got, after = run(tx, params, [put(mesh, g, specs) for g in grads], state)
    want = alone(method)
    # Sums in another order, through roots or bases that amplify them some tens of times.
    assert_near(got, want, rtol=1e-11)
    for before, x in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert x.sharding.is_equivalent_to(before.sharding, x.ndim)
    # All of it but counters is with the owners: of B tensors one device of eight has ceil(B / 8), each of so many rows;
    # and no more devices have room for a tensor than that takes.
    owned = [node for node in jax.tree.leaves(after[0], is_leaf=is_owned) if is_owned(node)]
    assert owned
    for node in owned:
        count, ways = sum(map(bool, node.rows)), math.prod(mesh.shape[a] for a in node.owners)
        for x in jax.tree.leaves(node.arrays):
            rows = x.shape[0] // len(node.rows)
            assert x.addressable_data(0).shape[0] == rows * -(-count // 8)
            assert x.shape[0] == ways * x.addressable_data(0).shape[0]


@pytest.mark.full_pipeline
def test_exchanges_are_those_of_the_matrices() -> None:
    """Sixteen equal matrices on eight devices: gradients enter, directions leave, and nothing of what is kept moves."""
    mesh, tree = mesh_of(x=8), {f"{i:02d}": jnp.ones((8, 8)) for i in range(16)}

    def rows_of(spec: P, tx: optax.GradientTransformation) -> list[str]:
        there = put(mesh, tree, jax.tree.map(lambda _: spec, tree))
        state = init_sharded(tx, there)
        program = jax.jit(tx.update).lower(there, state).compile()
        return [row.opcode for row in collective_bytes(program) if row.result_bytes > 8]

    for spec, opcodes in ((P(), ["all-gather"]), (P("x"), ["all-to-all"] * 2), (P(None, "x"), ["all-to-all"] * 2)):
        shard = gk.MatrixSharding(mesh, "x", specs=spec, min_dim=0)
        assert rows_of(spec, gk.scale_by_soap(shard=shard)) == opcodes
        assert rows_of(spec, gk.scale_by_shampoo(update_interval=5, shard=shard)) == opcodes


def test_inside_shard_map() -> None:
    """Leaves are what one device holds; the count of failures is of all devices."""
    mesh, tree = mesh_of(x=4), {"a": draw(1)["a"], "b": draw(2)["b"], "c": draw(3)["a"], "bias": draw(1)["bias"]}
    specs = {"a": P(), "b": P("x"), "c": P(None, "x"), "bias": P()}
    shard = gk.MatrixSharding(None, "x", min_dim=0, specs=specs)
    tx = gk.scale_by_shampoo(eps=0.1, shard=shard)

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(specs,), out_specs=(specs, P()), check_vma=False)
    def update(g: Any) -> Any:
        u, state = tx.update(g, tx.init(g))
        return u, state.metrics["failed_roots"]

    got, failed = update(put(mesh, tree, specs))
    plain = gk.scale_by_shampoo(eps=0.1)
    assert_near(got, plain.update(tree, plain.init(tree))[0], rtol=1e-12)
    assert int(failed) == 0


def test_failures_are_counted_over_all_owners() -> None:
    """Padding has no statistic and does not count; each of the three matrices has two roots that fail."""
    mesh, tree = mesh_of(x=8), {f"{i}": jnp.diag(jnp.array([1.0, 0.0])) for i in range(3)}
    tx = gk.scale_by_shampoo(eps=0.0, shard=gk.MatrixSharding(mesh, "x", specs=P(), min_dim=0))
    there = put(mesh, tree, jax.tree.map(lambda _: P(), tree))
    got, state = jax.jit(tx.update)(there, init_sharded(tx, there))
    assert int(state.metrics["failed_roots"]) == 6
    assert_near(got, tree)


def test_examples_enter_with_their_gradient() -> None:
    mesh = mesh_of(x=4)
    g, examples = {"w": draw(1)["a"]}, {"w": jnp.stack([draw(i)["a"] for i in range(3)])}
    specs = {"w": P("x")}
    tx = gk.scale_by_shampoo(eps=0.1, factor_source="per_example", shard=gk.MatrixSharding(mesh, "x", specs=specs))
    there = put(mesh, g, specs)
    rows = jax.device_put(examples["w"], NamedSharding(mesh, P(None, "x")))
    got, _ = jax.jit(tx.update)(there, init_sharded(tx, there), factor_grads={"w": rows})
    plain = gk.scale_by_shampoo(eps=0.1, factor_source="per_example")
    assert_near(got, plain.update(g, plain.init(g), factor_grads=examples)[0], rtol=1e-12)


def test_plan_of_tensors() -> None:
    """Rows are flattened about a cut axis; more than two of one tensor cannot be cut; dtypes are wide."""

    class Own(NamedTuple):
        S: Any

    def make(rows: int, dims: tuple[int, ...], dtype: Any, _: Any) -> Own:
        return Own(beside(jnp.zeros((rows, dims[0]), dtype), ((0,),)))

    mesh: Mesh = jax.make_mesh((2, 2, 2), ("x", "y", "z"), axis_types=(AxisType.Auto,) * 3)
    struct = {"conv": {"kernel": jax.ShapeDtypeStruct((2, 4, 4, 8), jnp.bfloat16)}}
    shard = gk.MatrixSharding(mesh, "x", specs={"conv": {"kernel": P(None, "z", None, "y")}}, min_dim=0)
    plan = plan_stacks(struct, make, method="m", layout=gk.leaves.default_layout, shard=shard, view=as_tensors)
    (stack,) = plan.stacks
    assert stack.dims == (2, 4, 4, 8) and stack.places == (1, 0, 2, 3)
    assert (stack.n, stack.m) == (32, 8)
    own = init_fields(plan, struct)["S"]["2x4x4x8"]
    # One tensor, which all devices work on: what is kept of it is sharded along its own axes.
    assert own.arrays.shape == (1, 2) and own.arrays.dtype == jnp.float32
    assert own.owners == () and own.single == ("y", "z", "x")
    five = {"conv": {"kernel": jax.ShapeDtypeStruct((5, 2, 4, 4, 8), jnp.bfloat16)}}
    shard = gk.MatrixSharding(mesh, "x", specs={"conv": {"kernel": P(None, None, "z", None, "y")}}, min_dim=0)
    stacked = gk.leaves.layout((gk.leaves.by_path(".*"), {"stack": 1}))
    plan = plan_stacks(five, make, method="m", layout=stacked, shard=shard, view=as_tensors)
    assert init_fields(plan, five)["S"]["2x4x4x8"].owners == ("y", "z", "x")
    three = gk.MatrixSharding(mesh, "x", specs={"conv": {"kernel": P(None, "z", "x", "y")}})
    with pytest.raises(ValueError, match=r"of 'conv/kernel' \[1, 2, 3\] are"):
        plan_stacks(struct, make, method="m", layout=gk.leaves.default_layout, shard=three, view=as_tensors)
