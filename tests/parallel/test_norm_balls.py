"""Scion on a mesh: one exchange for all matrices, one all-reduce for all other norms, and the numbers of one device."""

from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.parallel import collective_bytes
from tests.by_numpy import by_numpy

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
SHAPES = {f"{i}/kernel": (8, 16) for i in range(8)} | {
    "embed/embedding": (16, 8),
    "lm_head/kernel": (8, 16),
    "row/kernel": (16, 8),
    "norm/scale": (16,),
}
NORMS = {"row/.*": "row"}


def draw() -> Any:
    rng = np.random.default_rng(0)
    tree: dict[str, Any] = {}
    for name, shape in SHAPES.items():
        outer, inner = name.split("/")
        tree.setdefault(outer, {})[inner] = rng.standard_normal(shape).astype(np.float32)
    return tree


def spread(spec_of: Any, kind: AxisType) -> tuple[Any, Any]:
    mesh, tree = jax.make_mesh((8,), ("x",), axis_types=(kind,)), draw()
    specs = jax.tree.map(spec_of, tree)
    there = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), tree, specs)
    shard = gk.MatrixSharding(mesh, "x", min_dim=0, specs=specs if kind == AUTO else None)
    tx = gk.scion(0.1, norms=NORMS, shard=shard)
    with jax.set_mesh(mesh):
        state = jax.jit(tx.init, out_shardings=None)(there)
        program = jax.jit(lambda g, s, x: tx.update(g, s, x)[0]).lower(there, state, there).compile()
        return program(there, state, there), program


def opcodes(program: Any) -> list[str]:
    return sorted(row.opcode for row in collective_bytes(program))


@pytest.mark.full_pipeline
@pytest.mark.parametrize("kind", [AUTO, EXPLICIT], ids=["auto", "explicit"])
@pytest.mark.parametrize(
    ("spec_of", "expected"),
    [
        (lambda x: P(), ["all-gather"]),
        # Along inputs: the vectors of outputs (row), and that of the scale, are sums over devices, packed.
        (lambda x: P("x"), ["all-reduce", "all-to-all", "all-to-all"]),
        # Along outputs: the vectors of inputs (col), and that of the scale.
        (lambda x: P(*[None] * (x.ndim - 1), "x"), ["all-reduce", "all-to-all", "all-to-all"]),
    ],
    ids=["replicated", "inputs", "outputs"],
)
def test_exchanges_are_the_counted(spec_of: Any, expected: list[str], kind: AxisType) -> None:
    """Eight matrices are one stack; signs of the head move nothing. In the all-reduce is one number per vector."""
    got, program = spread(spec_of, kind)
    assert opcodes(program) == expected
    rows = collective_bytes(program)
    matrices = sum(row.result_bytes for row in rows if row.opcode != "all-reduce")
    # One eighth of the stack each way; of replicated leaves all of it, once.
    assert matrices == 4 * 8 * 16 * 8 * (1 if expected == ["all-gather"] else 2 / 8)
    assert sum(row.result_bytes for row in rows if row.opcode == "all-reduce") <= 4 * (16 + 8 + 1)
    tx, tree = gk.scion(0.1, norms=NORMS), draw()
    want = by_numpy(lambda g: tx.update(g, tx.init(g), g)[0])(tree)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # Sums in another order, in float32, times the slope of the map at 0, 3.4^5.
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-3, atol=1e-3 * float(np.abs(y).max()))


@pytest.mark.full_pipeline
@pytest.mark.parametrize("kind", [AUTO, EXPLICIT], ids=["auto", "explicit"])
@pytest.mark.parametrize("name", ["hyperball", "radius_control"])
def test_three_sums_per_block_are_one_exchange(name: str, kind: AxisType) -> None:
    """|W|^2, |u|^2 and <W, u> of all matrices: also where a step ends on a sphere, by the norm of a sum."""
    mesh, tree = jax.make_mesh((8,), ("x",), axis_types=(kind,)), draw()
    tx = {
        "hyperball": gk.hyperball(optax.identity(), 0.1),
        "radius_control": gk.radius_control(0.1, ratio=0.5, outward=0.5, pin=True, cautious_decay=0.1),
    }[name]
    g = jax.tree.map(lambda x: np.roll(x, 1, axis=-1) + np.float32(0.1), tree)
    there, pushed = (jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P("x"))), t) for t in (tree, g))
    with jax.set_mesh(mesh):
        state = tx.init(there)
        program = jax.jit(lambda g, s, x: tx.update(g, s, x)[0]).lower(pushed, state, there).compile()
        got = program(pushed, state, there)
    rows = collective_bytes(program)
    assert [(row.opcode, row.result_bytes) for row in rows] == [("all-reduce", 4 * 3 * 11)]  # of eleven matrices
    want = by_numpy(lambda g, x: tx.update(g, tx.init(x), x)[0])(g, tree)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # Sums of 128 products in another order: 2^-24 of the norms, to which a step is a tenth.
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-4, atol=1e-5)
